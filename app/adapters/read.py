"""An adapter file's tensors + its recipe + the base -> the canonical adapter; all accounted for.

layouts.py tells the names, methods/ the formulas, heads.py the head, targets.py whether it is the
whole of what the config says. A tensor that finds no place is a problem.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from app.adapters.base import Base
from app.adapters.config.labels import Labelling, label
from app.adapters.config.made_for import refuse_checkpoint, refuse_other_base, summary
from app.adapters.config.tasks import Purpose, purpose_of, refuse_untold
from app.adapters.heads import POOLERS, HeadReader
from app.adapters.layouts import Parts, read_names
from app.adapters.methods.layer import Layer, Shared
from app.adapters.methods.method import Method
from app.adapters.methods.table import (
    METHODS,
    WHOLE,
    check_parts,
    method_of_embedding,
    method_of_linear,
)
from app.adapters.methods.whole import repeats, whole_linear, whole_norm, whole_table
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Misfit, Problems
from app.adapters.targets import check_targets, lost_biases
from app.adapters.values import Adapter, Dense, LoRALayer, Norm, Rows, Scaling

T = TypeVar("T")
Change = LoRALayer | Dense | Norm | Rows
NO_LAYER = ("", "base_model")  # where PEFT has the tensors that all layers share
LOST_BIASES = (
    "bias=lora_only was trained, and PEFT (before 0.21) saved none of the biases: it is served "
    "with the base's own, as PEFT loads it"
)


def read_adapter(tensors: Mapping[str, Tensor], recipe: Recipe, base: Base) -> Adapter:
    """Sort every tensor into a change of a layer, or the head.

    Raises AdapterRejected with every tensor that has no place or does not fit, and for an adapter
    that was made for another base.
    """
    refuse_other_base(recipe, base)
    parts = read_names(tensors, recipe, base)
    refuse_checkpoint(parts, recipe, base)
    if not recipe.configured:  # then one layer's magnitude says that all must have one
        trained = parts.all_parts()
        recipe = replace(recipe, dora="magnitude" in trained, lora_bias="B.bias" in trained)
    problems = Problems([*recipe.problems, *parts.problems])
    layers = _Layers(parts, recipe, base, problems)
    heads = HeadReader(parts, recipe, base, layers.fold_linear, problems)
    purpose = purpose_of(parts, recipe, base)
    head = heads.read(purpose.task)
    layers.read(path for path in parts.modules if path not in heads.used)
    layers.check_shared()
    check_targets(recipe, base, parts, layers.targets, problems)
    if problems:
        raise AdapterRejected(summary(parts, recipe, base, list(problems)), problems)
    if purpose.untold:
        refuse_untold(parts)
    labelling = label(head, purpose.task, recipe, base, own=heads.own)
    if not layers.changes and head is None:
        reason = "the file changes no layer and has no head: there is nothing to serve"
        raise AdapterRejected(reason)
    return Adapter(
        layers=_of_type(LoRALayer, layers.changes),
        layout=parts.layout,
        scalings=tuple(sorted(layers.scalings, key=lambda s: (s.scale, s.r or 0))),
        kind=recipe.kind,
        task=purpose.task,
        replaced=_of_type(Dense, layers.changes),
        norms=_of_type(Norm, layers.changes),
        embeddings=_of_type(Rows, layers.changes),
        head=head,
        labels=labelling.labels,
        scores=labelling.scores,
        sentence=recipe.sentence,
        ignored=tuple(sorted(parts.ignored)),
        assumed=_assumed(recipe, parts, purpose, labelling),
    )


def _of_type(kind: type[T], changes: Mapping[str, Change]) -> dict[str, T]:
    return {path: change for path, change in changes.items() if isinstance(change, kind)}


def _assumed(
    recipe: Recipe, parts: Parts, purpose: Purpose, labelling: Labelling
) -> tuple[str, ...]:
    """What the upload leaves open, and how it was taken, in words for the uploader."""
    biases = [LOST_BIASES] if lost_biases(recipe, parts) else []
    task = [purpose.assumed] if purpose.assumed else []
    return (*recipe.assumed, *biases, *task, *labelling.assumed)


@dataclass(eq=False)
class _Layers:
    """Folds one file's layers of the encoder.

    targets: a path as the file spells it -> the base's. changes: the base's path -> what becomes of
    the layer. scalings: each that a formula used, once.
    """

    parts: Parts
    recipe: Recipe
    base: Base
    problems: Problems
    changes: dict[str, Change] = field(default_factory=dict)
    scalings: set[Scaling] = field(default_factory=set)

    def __post_init__(self) -> None:
        resolved = {path: self.base.resolve(path) for path in self.parts.modules}
        self.targets = {path: target for path, target in resolved.items() if target is not None}
        self.method: Method = METHODS[self.recipe.kind]
        shared = {
            part: tensor
            for path in NO_LAYER
            for part, tensor in self.parts.modules.get(path, {}).items()
            if part in self.method.shared.values()
        }
        self.shared = Shared(shared, self._widest())

    def read(self, paths: Iterable[str]) -> None:
        """Fold the layers at these paths; what fits no layer is a problem."""
        seen: set[str] = set()
        for path in paths:
            target = self.targets.get(path)
            if path in NO_LAYER or self._is_unread_pooler(path):
                continue
            if target is None:
                self._refuse(path, "belongs to no layer of this base nor to its head")
            elif target in seen:
                self._refuse(path, "is given twice, with and without the model's prefix")
            else:
                seen.add(target)
                self._read_layer(path, target)

    def _read_layer(self, path: str, target: str) -> None:
        weight, bias = self.base.weight(target), self.base.bias(target)
        layer = Layer(path, self.parts.modules[path], weight, bias)
        with self.problems.caught(lambda part: self.parts.name(path, part)):
            if target in self.base.linears:
                self.changes[target] = self.fold_linear(layer)
            elif target in self.base.norms:
                check_parts(layer, WHOLE)
                self.changes[target] = whole_norm(layer)
            elif (rows := self._fold_embedding(layer)) is not None:
                self.changes[target] = rows

    def fold_linear(self, layer: Layer) -> LoRALayer | Dense:
        """By the formula of the method whose tensors these are. Raises Misfit, AdapterRejected."""
        method = method_of_linear(layer, self.recipe)
        if method is None or method.fold is None:
            return whole_linear(layer)
        if "weight" in layer.parts:
            if not repeats(layer):
                raise Misfit("replaces a layer that the file also adapts", "weight")
            self.parts.ignored.append(self.parts.name(layer.path, "weight"))
        change, scaling = method.fold(layer, self.recipe, self.shared)
        self.scalings |= {scaling} if scaling else set()
        return change

    def _fold_embedding(self, layer: Layer) -> Rows | None:
        """None where the file only repeats the base's table. Raises Misfit, AdapterRejected."""
        method = method_of_embedding(layer, self.recipe)
        table = whole_table(layer)
        if "weight" in layer.parts and table is None:
            self.parts.ignored.append(self.parts.name(layer.path, "weight"))
        if method is None or method.fold_rows is None:
            return None if table is None else Rows(table)
        rows, scaling = method.fold_rows(layer, self.recipe)
        self.scalings |= {scaling} if scaling else set()
        return rows

    def check_shared(self) -> None:
        """A problem for each tensor of no layer that the method does not share."""
        places = [(p, part) for p in NO_LAYER for part in self.parts.modules.get(p, {})]
        for place in places:
            if place[1] not in self.shared.tensors:
                self.problems.add("belongs to no layer", self.parts.names[place])
        switch = self.method.saved_if
        if switch is not None and self.recipe.numbers[switch] != bool(places):
            state = "off, and the file has" if places else "on, but the file has no"
            names = " and ".join(self.method.shared)
            self.problems.add(f"the config's {switch} is {state} {names}")

    def _refuse(self, path: str, reason: str) -> None:
        for part in self.parts.modules[path]:
            self.problems.add(reason, self.parts.names[path, part])

    def _is_unread_pooler(self, path: str) -> bool:
        """Is it a pooler that this base lacks? Nothing reads it: a head that would is refused."""
        pooler = POOLERS.get(self.base.model_type, "pooler.dense")
        if self.base.has_pooler or path not in self.base.spellings(pooler) or path in self.targets:
            return False
        self.parts.ignored.extend(self.parts.names[path, p] for p in self.parts.modules[path])
        return True

    def _widest(self) -> tuple[int, int]:
        """The largest (out, in) of the Linears that the file adapts."""
        shapes = [
            self.base.linears[target]
            for path, target in self.targets.items()
            if target in self.base.linears and self._trains(self.parts.modules[path])
        ]
        return max((s[0] for s in shapes), default=0), max((s[1] for s in shapes), default=0)

    def _trains(self, parts: Collection[str]) -> bool:
        return not self.method.parts.isdisjoint(parts)
