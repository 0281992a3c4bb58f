"""What an adapter has to fit: the frozen base's layers and weights. Knows no model class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from app.adapters.values import ProblemType, Task

HEAD_PATHS = {
    "classifier", "classifier.dense", "classifier.out_proj", "pre_classifier", "head.dense",
    "head.norm",
}  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """What the base's own config.json says of its head; None: it does not say."""

    task: Task | None
    labels: tuple[str, ...] | None
    problem_type: ProblemType | None


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen base. linears: module path -> (out, in); embeddings: -> (num, dim); norms: -> width.

    prefix: what a model with a head puts before the paths, as in "bert.". tensors: the frozen
    parameters by name. head: what the checkpoint holds of a head (ModernBERT's head.dense, …).
    """

    model_type: str
    prefix: str
    hidden: int
    layers: int
    vocabulary: int
    linears: Mapping[str, tuple[int, int]]
    embeddings: Mapping[str, tuple[int, int]]
    norms: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    has_pooler: bool
    classifier_pooling: str
    classifier_activation: str
    norm_eps: float
    classifier: Classifier | None = None

    @property
    def modules(self) -> list[str]:
        """The path of every module whose weight an adapter can change, in order."""
        return [*self.embeddings, *self.linears, *self.norms]

    def resolve(self, path: str) -> str | None:
        """The base's own path of a layer, which a model with a head spells with a prefix."""
        bare = path.removeprefix(f"{self.prefix}.")
        return next((p for p in (path, bare) if self._has(p)), None)

    def _has(self, path: str) -> bool:
        return path in self.linears or path in self.embeddings or path in self.norms

    def weight(self, path: str) -> Tensor:
        """A layer's, in the base's dtype. Raises KeyError."""
        return self.tensors[f"{path}.weight"]

    def bias(self, path: str) -> Tensor | None:
        """A layer's; None for one without."""
        return self.tensors.get(f"{path}.bias")

    def spellings(self, path: str) -> tuple[str, str]:
        """A layer's path in the bare encoder, and in a model with a head."""
        return path, f"{self.prefix}.{path}"

    @property
    def described(self) -> str:
        """In words, for a refusal."""
        return f"{self.hidden}-wide, {self.layers}-layer {self.model_type}"
