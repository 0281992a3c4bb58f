"""An adapter file's tensors + its recipe + the base -> the canonical adapter; all accounted for.

layouts.py tells the names, fold.py and fold_other.py the formulas, heads.py the head, targets.py
whether it is the whole of what the config says. A tensor that finds no place is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from torch import Tensor

from app.adapters.base import Base
from app.adapters.config.labels import Labelling, label
from app.adapters.config.made_for import other_base, summary, whole_checkpoint
from app.adapters.config.recipe import Recipe
from app.adapters.config.tasks import Purpose, purpose_of, refuse_untold
from app.adapters.heads import POOLERS, HeadReader
from app.adapters.layouts import PEFT_KINDS, Parts, read_names
from app.adapters.methods.fold import Layer, Misfit, fold_adalora, fold_lora
from app.adapters.methods.fold_other import (
    fold_fourier,
    fold_ia3,
    fold_loha,
    fold_lokr,
    fold_oft,
    fold_vera,
)
from app.adapters.methods.fold_whole import (
    fold_embedding,
    fold_tokens,
    repeats,
    whole_linear,
    whole_norm,
    whole_table,
)
from app.adapters.methods.kinds import Method
from app.adapters.methods.switches import LORA_PARTS, check_switches, kind_of_layer
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.targets import check_targets, lost_biases
from app.adapters.values import Adapter, Dense, LoRALayer, Norm, Rows, Scaling

SHARED_PARTS: dict[Method, set[str]] = {"LORA": LORA_PARTS, "ADALORA": {"A", "B"}}
SHARED = ("", "base_model")  # where VeRA's projections are, which belong to no layer


@dataclass(eq=False)
class _Found:
    """What has been read so far, by the base's paths."""

    layers: dict[str, LoRALayer] = field(default_factory=dict)
    replaced: dict[str, Dense] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    embeddings: dict[str, Rows] = field(default_factory=dict)
    scalings: set[Scaling] = field(default_factory=set)

    def add(self, target: str, change: LoRALayer | Dense | Norm | Rows) -> None:
        match change:
            case LoRALayer():
                self.layers[target] = change
            case Dense():
                self.replaced[target] = change
            case Norm():
                self.norms[target] = change
            case Rows():
                self.embeddings[target] = change
            case _:
                assert_never(change)


def read_adapter(tensors: Mapping[str, Tensor], recipe: Recipe, base: Base) -> Adapter:
    """Sort every tensor into a change of a layer, or the head.

    Raises AdapterRejected with every tensor that has no place or does not fit, and for an adapter
    that was made for another base.
    """
    reason = other_base(recipe, base)
    if reason:
        raise AdapterRejected(reason)
    parts = read_names(tensors, recipe, base)
    reason = whole_checkpoint(parts, recipe, base)
    if reason:
        raise AdapterRejected(reason)
    if not recipe.configured:  # then one layer's magnitude says that all must have one
        said = {part for module in parts.modules.values() for part in module}
        recipe = replace(recipe, dora="magnitude" in said, lora_bias="B.bias" in said)
    problems = [*recipe.problems, *parts.problems]
    found = _Found()
    shared = {k: t for path in SHARED for k, t in parts.modules.get(path, {}).items()}
    resolved = {p: t for p in parts.modules if (t := base.resolve(p)) is not None}
    folding = _Folding(parts, recipe, shared, _widest(parts, resolved, base), found.scalings)
    reader = HeadReader(parts, recipe, base, folding.linear, problems, set())
    purpose = purpose_of(parts, recipe, base)
    head = reader.read(purpose.task)
    rest = [p for p in parts.modules if p not in reader.used and p not in SHARED]
    _read_layers(rest, resolved, folding, base, found, problems)
    problems += _stray_shared(parts, recipe)
    problems += check_targets(recipe, base, parts, resolved)
    if problems:
        raise AdapterRejected(summary(parts, recipe, base, problems), problems)
    if purpose.untold:
        refuse_untold(parts)
    named = label(head, purpose.task, recipe, base, own=reader.own)
    adapter = Adapter(
        layers=found.layers,
        layout=parts.layout,
        scalings=tuple(sorted(found.scalings, key=lambda s: (s.scale, s.r or 0))),
        kind=recipe.kind,
        task=purpose.task,
        replaced=found.replaced,
        norms=found.norms,
        embeddings=found.embeddings,
        head=head,
        labels=named.labels,
        scores=named.scores,
        sentence=recipe.sentence,
        ignored=tuple(sorted(parts.ignored)),
        assumed=_assumed(recipe, parts, purpose, named),
    )
    if not adapter.changes_encoder and head is None:
        raise AdapterRejected(
            "the file changes no layer and has no head: there is nothing to serve"
        )
    return adapter


def _assumed(recipe: Recipe, parts: Parts, purpose: Purpose, named: Labelling) -> tuple[str, ...]:
    lost = (
        "bias=lora_only was trained, and PEFT (before 0.21) saved none of the biases: it is served "
        "with the base's own, as PEFT loads it"
    )
    return (
        *recipe.assumed,
        *([lost] if lost_biases(recipe, parts) else []),
        *([purpose.assumed] if purpose.assumed else []),
        *named.assumed,
    )


def _read_layers(
    paths: list[str],
    resolved: Mapping[str, str],
    folding: _Folding,
    base: Base,
    found: _Found,
    problems: list[Problem],
) -> None:
    parts, seen = folding.parts, set[str]()
    for path in paths:
        target = resolved.get(path)
        if target is None and not base.has_pooler and path in base.spellings(_pooler(base)):
            parts.ignored.extend(parts.names[path, part] for part in parts.modules[path])
            continue  # nothing here reads a pooler: a head that would was refused before
        if target is None or target in seen:
            reason = (
                "is given twice, with and without the model's prefix"
                if target
                else "belongs to no layer of this base nor to its head"
            )
            problems += [Problem(reason, parts.names[path, part]) for part in parts.modules[path]]
            continue
        seen.add(target)
        layer = Layer(path, parts.modules[path], base.weight(target), base.bias(target))
        try:
            if target in base.linears:
                change: LoRALayer | Dense | Norm | Rows | None = folding.linear(layer)
            elif target in base.norms:
                change = folding.norm(layer)
            else:
                change = folding.embedding(layer)
        except Misfit as error:
            problems.append(Problem(error.reason, parts.name(path, error.part)))
            continue
        if change is not None:
            found.add(target, change)


@dataclass(eq=False)
class _Folding:
    """The formulas, with what is the same for all of a file's layers. scalings: filled as found."""

    parts: Parts
    recipe: Recipe
    shared: Mapping[str, Tensor]
    widest: tuple[int, int]
    scalings: set[Scaling]

    def linear(self, layer: Layer) -> LoRALayer | Dense:
        """Raises Misfit."""
        kind = kind_of_layer(layer, self.recipe)
        if kind is None:
            self._only(layer, {"weight", "bias"})
            return whole_linear(layer)
        if "weight" in layer.parts:
            if not repeats(layer):
                raise Misfit("replaces a layer that the file also adapts", "weight")
            self.parts.ignored.append(self.parts.name(layer.path, "weight"))
        change, scaling = self._by_kind(kind, layer)
        if scaling is not None:
            self.scalings.add(scaling)
        return change

    def _by_kind(self, kind: Method, layer: Layer) -> tuple[LoRALayer | Dense, Scaling | None]:
        """Raises Misfit."""
        own = {part for part, of in PEFT_KINDS.items() if of == kind} | {"weight", "bias"}
        self._only(layer, own | SHARED_PARTS.get(kind, set()))
        recipe = self.recipe
        match kind:
            case "LORA":
                check_switches(layer, recipe)
                return fold_lora(layer, recipe)
            case "ADALORA":
                return fold_adalora(layer, recipe)
            case "LOHA":
                return fold_loha(layer, recipe)
            case "LOKR":
                return fold_lokr(layer, recipe)
            case "IA3":
                return fold_ia3(layer), None
            case "VERA":
                return fold_vera(layer, recipe, self.shared, self.widest), None
            case "FOURIERFT":
                return fold_fourier(layer, recipe)
            case "OFT":
                return fold_oft(layer, recipe), None
            case "LN_TUNING" | "TRAINABLE_TOKENS":
                raise Misfit(f"is no part of {kind}")
            case _:
                assert_never(kind)

    def norm(self, layer: Layer) -> Norm:
        """Raises Misfit."""
        self._only(layer, {"weight", "bias"})
        return whole_norm(layer)

    def embedding(self, layer: Layer) -> Rows | None:
        """None where it only repeats the base's table. Raises Misfit."""
        if "tokens" in layer.parts:
            self._only(layer, {"tokens", "weight"})
            if "weight" in layer.parts and whole_table(layer) is None:
                self.parts.ignored.append(self.parts.name(layer.path, "weight"))
            return fold_tokens(layer, self.recipe)
        self._only(layer, {"weight", "embedding_A", "embedding_B", "magnitude"})
        if "weight" in layer.parts and whole_table(layer) is None:
            self.parts.ignored.append(self.parts.name(layer.path, "weight"))
        if layer.parts.keys() == {"weight"}:
            table = whole_table(layer)
            return None if table is None else Rows(table)
        check_switches(layer, self.recipe)
        change, scaling = fold_embedding(layer, self.recipe)
        self.scalings.add(scaling)
        return change

    def _only(self, layer: Layer, allowed: set[str]) -> None:
        for part in layer.parts:
            if part not in allowed:
                raise Misfit("does not belong to a layer like this one", part)


def _widest(parts: Parts, resolved: Mapping[str, str], base: Base) -> tuple[int, int]:
    """The largest (out, in) of the layers that VeRA shares its projections over."""
    shapes = [
        base.linears[resolved[path]]
        for path, module in parts.modules.items()
        if "vera_lambda_d" in module and resolved.get(path) in base.linears
    ]
    return max((s[0] for s in shapes), default=0), max((s[1] for s in shapes), default=0)


def _stray_shared(parts: Parts, recipe: Recipe) -> list[Problem]:
    """Tensors outside of any layer that are not VeRA's projections."""
    given = [(path, part) for path in SHARED for part in parts.modules.get(path, {})]
    problems = [
        Problem("belongs to no layer", parts.names[found])
        for found in given
        if recipe.kind != "VERA" or found[1] not in ("vera_A", "vera_B")
    ]
    if recipe.kind == "VERA" and recipe.numbers["save_projection"] != bool(given):
        said = "on, but the file has no" if not given else "off, and the file has"
        problems.append(Problem(f"the config's save_projection is {said} vera_A and vera_B"))
    return problems


def _pooler(base: Base) -> str:
    return POOLERS.get(base.model_type, "pooler.dense")
