"""What stands behind the encoder: each architecture's head, from the file or from the base's own.

Knows where an architecture keeps its heads; knows no model class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.config.recipe import Recipe
from app.adapters.layouts import Parts
from app.adapters.methods.fold import Layer, Misfit
from app.adapters.refusals import Problem
from app.adapters.values import Dense, Head, LoRALayer, Norm, Source, Task

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
}
PLAIN_TOKENS = HeadKeys("tokens", "classifier")
TOKEN_HEADS = dict.fromkeys(SEQUENCE_HEADS, PLAIN_TOKENS) | {
    "modernbert": HeadKeys(
        "tokens", "classifier", "head.dense", "classifier_activation", "head.norm"
    )
}
POOLERS = {"bert": "pooler.dense", "albert": "pooler"}


@dataclass(eq=False)
class HeadReader:
    """Builds one file's head. problems: filled as they are found. used: the paths it took.

    own: whether what answers is the base's own output layer, and not one that came with the file.
    """

    parts: Parts
    recipe: Recipe
    base: Base
    fold: Fold
    problems: list[Problem]
    used: set[str]
    own: bool = False

    def read(self, task: Task) -> Head | None:
        """The head for this task; None for none, and where there are problems."""
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
        pooler = self._own_pooler(keys)
        dense = pooler or (self._dense(keys.dense) if keys.dense else None)
        norm = self._norm(keys.norm) if keys.norm else None
        out = self._dense(keys.out)
        if out is None or len(self.problems) > before:
            return None
        self.own = not self._given(keys.out)
        if dense is not None and dense.weight.shape[0] != out.weight.shape[1]:
            self._problem(keys.out, "does not fit the head's other layer")
        source, activation = self._source(keys, pooler), keys.activation
        if activation == "classifier_activation":
            activation = self.base.classifier_activation
        if pooler is not None:
            activation = "tanh"
        return Head(source, dense, activation, out, norm, self.base.norm_eps)

    def _given(self, path: str) -> bool:
        return "weight" in self.parts.modules.get(path, {})

    def _source(self, keys: HeadKeys, pooler: Dense | None) -> Source:
        if pooler is not None:
            return "cls"
        if keys.source == "classifier_pooling":
            said = self.recipe.model_config.get("classifier_pooling", self.base.classifier_pooling)
            if said not in ("mean", "cls"):
                self._problem(keys.out, f"classifier_pooling={said!r:.40} is neither cls nor mean")
            return "mean" if said == "mean" else "cls"
        if keys.source == "pooler" and not self.base.has_pooler:
            self._problem(keys.out, "the head reads the pooler, and this base has none")
        return keys.source  # type: ignore[return-value]

    def _own_pooler(self, keys: HeadKeys) -> Dense | None:
        """The file's pooler, where the base has none to change."""
        if keys.source != "pooler" or self.base.has_pooler:
            return None
        bare = POOLERS[self.base.model_type]
        path = next((p for p in self.base.spellings(bare) if self._given(p)), None)
        return self._dense(path) if path else None

    def _dense(self, path: str) -> Dense | None:
        """A layer of the head: the file's, or the base's own, with the file's changes."""
        module = self.parts.modules.get(path, {})
        self.used.add(path)
        weight, bias = (self._tensor(path, leaf) for leaf in ("weight", "bias"))
        if weight is None:
            self._problem(
                path,
                "is a head's layer, but its weight is not in the file, and the base has none: train "
                "with it in modules_to_save",
            )
            return None
        if weight.dim() != 2:
            self._problem(path, f"has the shape {list(weight.shape)}, which is no matrix", "weight")
            return None
        if weight.shape[1] != self.base.hidden:
            self._problem(
                path, f"reads {weight.shape[1]} values; this base is {self.base.hidden}-wide"
            )
            return None
        if bias is not None and bias.shape != weight.shape[:1]:
            self._problem(path, "bias and weight do not fit each other", "bias")
            return None
        if bias is None and not path.startswith("head."):
            self._problem(path, "has no bias in the file, and this head has one")
            return None
        low = {part: t for part, t in module.items() if part not in ("weight", "bias")}
        if not low:
            return Dense(weight, bias)
        if "weight" in module:
            self._problem(path, "is given whole, and the file also adapts it")
            return None
        return self._changed(Layer(path, low, weight, bias))

    def _changed(self, layer: Layer) -> Dense | None:
        """The base's own head layer with a low-rank change folded into it."""
        try:
            change = self.fold(layer)
        except Misfit as error:
            self._problem(layer.path, error.reason, error.part)
            return None
        if isinstance(change, Dense):
            return change
        weight, bias = layer.frozen, layer.own_bias
        if change.gain is not None:
            weight, bias = change.gain[:, None] * weight, change.gain * bias
        weight = weight + change.B.double() @ change.A.double()
        if change.shift is not None:
            bias = bias + change.shift
        return Dense(weight.float(), None if layer.bias is None else bias.float())

    def _norm(self, path: str) -> Norm | None:
        self.used.add(path)
        weight, bias = (self._tensor(path, leaf) for leaf in ("weight", "bias"))
        if weight is None or weight.shape != (self.base.hidden,):
            self._problem(path, "is a head's norm, and neither file nor base have one that fits")
            return None
        return Norm(weight, bias)

    def _tensor(self, path: str, leaf: str) -> Tensor | None:
        """The file's, else the base's, in float32."""
        module = self.parts.modules.get(path, {})
        found = module.get(leaf)
        if found is None and not (leaf == "bias" and "weight" in module):
            found = self.base.head.get(f"{path}.{leaf}")
        if found is None:
            return None
        found = found.detach().cpu().float()
        if not torch.isfinite(found).all():
            self._problem(path, "is not finite in float32", leaf)
        return found

    def _problem(self, path: str, reason: str, part: str | None = None) -> None:
        name = self.parts.names.get((path, part or "weight"), f"{path}.{part or 'weight'}")
        self.problems.append(Problem(reason, name))
