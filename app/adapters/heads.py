"""What stands behind the encoder: each architecture's head, from the file or from the base's own.

Knows where an architecture keeps its heads; knows no model class.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, assert_never

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.layouts import Parts
from app.adapters.methods.layer import Layer
from app.adapters.methods.table import WHOLE
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit, Problems
from app.adapters.values import Dense, Head, LoRALayer, Norm, Source, Task

T = TypeVar("T")
Fold = Callable[[Layer], "LoRALayer | Dense"]


@dataclass(frozen=True)
class HeadKeys:
    """Where a head keeps its layers, in the order of its computation.

    source: what it reads; "classifier_pooling": as the model's config says (ModernBERT).
    activation "classifier_activation": the config's too. Source: transformers'
    <Architecture>ForSequenceClassification and ForTokenClassification.
    """

    source: Source | str
    out: str
    dense: str | None = None
    activation: str | None = None
    norm: str | None = None


BERT = HeadKeys("pooler", "classifier")
ROBERTA = HeadKeys("cls", "classifier.out_proj", "classifier.dense", "tanh")
SEQUENCE_HEADS: dict[str, HeadKeys] = {
    "bert": BERT,
    "albert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": HeadKeys("cls", "classifier.out_proj", "classifier.dense", "gelu"),
    "distilbert": HeadKeys("cls", "classifier", "pre_classifier", "relu"),
    "modernbert": HeadKeys(
        "classifier_pooling", "classifier", "head.dense", "classifier_activation", "head.norm"
    ),
    "jina_embeddings_v3": ROBERTA,
    "nomic_bert": BERT,
    "gte": BERT,
    "xlm-roberta-xl": ROBERTA,
}
PLAIN_TOKENS = HeadKeys("tokens", "classifier")
TOKEN_HEADS = dict.fromkeys(SEQUENCE_HEADS, PLAIN_TOKENS) | {
    "modernbert": HeadKeys(
        "tokens", "classifier", "head.dense", "classifier_activation", "head.norm"
    )
}
POOLERS = {
    "bert": "pooler.dense",
    "albert": "pooler",
    "nomic_bert": "pooler.dense",
    "gte": "pooler.dense",
}


@dataclass(eq=False)
class HeadReader:
    """Builds one file's head.

    fold: the formula of a layer that the file adapts. used: the paths that the head took. own:
    whether what answers is the base's own output layer, and not one that came with the file.
    """

    parts: Parts
    recipe: Recipe
    base: Base
    fold: Fold
    problems: Problems
    used: set[str] = field(default_factory=set)
    own: bool = False

    def read(self, task: Task) -> Head | None:
        """The head for this task; None without one, or with problems. Raises AdapterRejected."""
        match task:
            case "embed":
                return None
            case "classify":
                keys = SEQUENCE_HEADS[self.base.model_type]
            case "tokens":
                keys = TOKEN_HEADS[self.base.model_type]
            case _:
                assert_never(task)
        before = len(self.problems)
        pooler = self._part(self._own_pooler(keys), self._dense)
        dense = pooler or self._part(keys.dense, self._dense)
        norm = self._part(keys.norm, self._norm)
        out = self._part(keys.out, self._dense)
        if out is None or len(self.problems) > before:
            return None
        self.own = not self.parts.has(keys.out, "weight")
        with self._caught(keys.out):
            if dense is not None and dense.weight.shape[0] != out.weight.shape[1]:
                raise Misfit("does not fit the head's other layer")
            source = "cls" if pooler else self._source(keys)
            activation = "tanh" if pooler else self._activation(keys)
            return Head(source, dense, activation, out, norm, self.base.norm_eps)
        return None

    def _part(self, path: str | None, read: Callable[[str], T]) -> T | None:
        """A layer of the head; None for none, and where it cannot be served."""
        if path is None:
            return None
        self.used.add(path)
        with self._caught(path):
            return read(path)
        return None

    def _caught(self, path: str) -> AbstractContextManager[None]:
        """Adds a Misfit raised inside to the problems, by the file's name of the part."""
        return self.problems.caught(partial(self._name, path))

    def _name(self, path: str, part: str | None) -> str:
        part = part or "weight"
        return self.parts.names.get((path, part), f"{path}.{part}")

    def _source(self, keys: HeadKeys) -> Source:
        """Raises Misfit."""
        if keys.source == "classifier_pooling":
            own = self.base.classifier_pooling
            pooling: Source = self.recipe.model_config.get("classifier_pooling", own)
            if pooling not in ("mean", "cls"):
                raise Misfit(f"classifier_pooling={pooling!r:.40} is neither cls nor mean")
            return pooling
        if keys.source == "pooler" and not self.base.has_pooler:
            raise Misfit("the head reads the pooler, and this base has none")
        return keys.source  # type: ignore[return-value]

    def _activation(self, keys: HeadKeys) -> str | None:
        by_config = keys.activation == "classifier_activation"
        return self.base.classifier_activation if by_config else keys.activation

    def _own_pooler(self, keys: HeadKeys) -> str | None:
        """The path of the file's pooler, where the base has none to change."""
        if keys.source != "pooler" or self.base.has_pooler:
            return None
        spellings = self.base.spellings(POOLERS[self.base.model_type])
        return next((path for path in spellings if self.parts.has(path, "weight")), None)

    def _dense(self, path: str) -> Dense:
        """A layer of the head: the file's, or the base's with the file's changes. Raises Misfit."""
        weight, bias = (self._tensor(path, leaf) for leaf in ("weight", "bias"))
        if weight is None:
            raise Misfit(
                "is a head's layer, but its weight is not in the file, and the base has none: "
                "train with it in modules_to_save"
            )
        if weight.dim() != 2:
            raise Misfit(f"has the shape {list(weight.shape)}, which is no matrix", "weight")
        if weight.shape[1] != self.base.hidden:
            raise Misfit(f"reads {weight.shape[1]} values; this base is {self.base.hidden}-wide")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise Misfit("bias and weight do not fit each other", "bias")
        if bias is None and not path.startswith("head."):
            raise Misfit("has no bias in the file, and this head has one")
        module = self.parts.modules.get(path, {})
        adapted = {part: tensor for part, tensor in module.items() if part not in WHOLE}
        if not adapted:
            return Dense(weight, bias)
        if "weight" in module:
            raise Misfit("is given whole, and the file also adapts it")
        return self._changed(Layer(path, adapted, weight, bias))

    def _changed(self, layer: Layer) -> Dense:
        """The base's own head layer with a low-rank change folded into it. Raises Misfit."""
        change = self.fold(layer)
        if isinstance(change, Dense):
            return change
        weight, bias = layer.frozen, layer.own_bias
        if change.gain is not None:
            weight, bias = change.gain[:, None] * weight, change.gain * bias
        weight = weight + change.B.double() @ change.A.double()
        if change.shift is not None:
            bias = bias + change.shift
        return Dense(weight.float(), None if layer.bias is None else bias.float())

    def _norm(self, path: str) -> Norm:
        """Raises Misfit."""
        weight, bias = (self._tensor(path, leaf) for leaf in ("weight", "bias"))
        if weight is None or weight.shape != (self.base.hidden,):
            raise Misfit("is a head's norm, and neither file nor base have one that fits")
        return Norm(weight, bias)

    def _tensor(self, path: str, leaf: str) -> Tensor | None:
        """The file's, else the base's, in float32. Raises Misfit."""
        module = self.parts.modules.get(path, {})
        tensor = module.get(leaf)
        if tensor is None and not (leaf == "bias" and "weight" in module):
            tensor = self.base.head.get(f"{path}.{leaf}")
        if tensor is None:
            return None
        tensor = tensor.detach().cpu().float()
        if not torch.isfinite(tensor).all():
            raise Misfit("is not finite in float32", leaf)
        return tensor
