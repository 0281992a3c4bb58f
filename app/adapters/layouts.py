"""Tensor names of an adapter file -> the canonical adapter; every tensor is accounted for.

Knows PEFT's keys, the tutorial's keys and each architecture's head; gets the base's shapes as an
argument and knows no model class. A tensor that finds no place is a problem, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.adapters.adapter import Adapter, LoRALayer, fold
from app.adapters.base_shape import BaseShape
from app.adapters.config import Recipe, scores_of
from app.adapters.heads import PEFT_PREFIX, check_labels, read_denses, take_head, take_replaced
from app.adapters.targets import missing_targets
from app.adapters.upload import AdapterRejected, Problem

PEFT_KEY = re.compile(r"(?P<path>.+)\.lora_(?P<letter>[AB])\.weight")
TUTORIAL_KEY = re.compile(r"(?P<path>.+)\.lora\.(?P<letter>[AB])")


def read_adapter(tensors: Mapping[str, Tensor], recipe: Recipe, base: BaseShape) -> Adapter:
    """Sort every tensor into a LoRA layer, a replaced Linear or the head.

    Raises AdapterRejected with every tensor that has no place or does not fit.
    """
    if recipe.model_type not in (None, base.model_type):
        raise AdapterRejected(
            f"made for a {recipe.model_type} model, as its config.json says; this base is "
            f"{base.model_type}"
        )
    sorted_ = _sort(tensors)
    layout = _layout(sorted_, recipe, base)
    problems: list[Problem] = []
    layers, scales = _layers(sorted_.pairs, layout, recipe, base, problems)
    dense = read_denses(sorted_.rest, problems)
    head = take_head(dense, recipe, base, problems)
    replaced = take_replaced(dense, layers, base, problems)
    problems += missing_targets(recipe, base, {*layers, *replaced})
    if problems:
        raise AdapterRejected(_summary(sorted_.pairs, layout, base, problems), problems)
    if not layers and not replaced:
        raise AdapterRejected("the file changes no layer of the encoder: there is nothing to serve")
    labels = check_labels(head, recipe)
    return Adapter(
        layers=layers,
        layout=layout,
        scale=next(iter(scales)) if len(scales) == 1 else None,
        task="classify" if head else "embed",
        replaced=replaced,
        head=head,
        labels=labels,
        scores=scores_of(recipe, len(labels)),
        pooling=recipe.pooling,
        normalize=recipe.normalize,
        max_length=recipe.max_length,
    )


@dataclass(frozen=True)
class _Sorted:
    """pairs: module path as the file spells it -> its A and B; rest: all other tensors."""

    pairs: dict[str, dict[str, Tensor]]
    names: set[str]
    rest: dict[str, Tensor]


def _sort(tensors: Mapping[str, Tensor]) -> _Sorted:
    pairs: dict[str, dict[str, Tensor]] = {}
    kinds: set[str] = set()
    rest: dict[str, Tensor] = {}
    twice: list[Problem] = []
    for name, tensor in tensors.items():
        bare = name.removeprefix(PEFT_PREFIX)
        peft, tutorial = PEFT_KEY.fullmatch(bare), TUTORIAL_KEY.fullmatch(bare)
        match = peft or tutorial
        if match is None:
            rest[name] = tensor
        else:
            kinds.add("peft" if peft else "tutorial")
            pair = pairs.setdefault(match["path"], {})
            if match["letter"] in pair:
                twice.append(Problem("is given twice, with and without PEFT's prefix", name))
            pair[match["letter"]] = tensor
    if twice:
        raise AdapterRejected("the file names some layers twice", twice)
    if len(kinds) > 1:
        raise AdapterRejected(
            "the file mixes PEFT's keys (lora_A.weight) and the tutorial's (lora.A)"
        )
    return _Sorted(pairs, kinds, rest)


def _layout(found: _Sorted, recipe: Recipe, base: BaseShape) -> str:
    """peft, or which of the tutorial's two letter orders; shapes decide where they can."""
    if not found.names or found.names == {"peft"}:
        if recipe.layout not in (None, "peft"):
            raise AdapterRejected(f"layout={recipe.layout}, but the file's keys are PEFT's")
        return "peft"
    if recipe.layout == "peft":
        raise AdapterRejected("layout=peft, but the file's keys are the tutorial's (….lora.A)")
    if recipe.layout:
        return recipe.layout
    fits = {layout for layout in ("tutorial", "tutorial-swapped") if _fits(found, layout, base)}
    square = all(
        shape is None or shape[0] == shape[1]
        for shape in (base.linears.get(base.resolve(path) or "") for path in found.pairs)
    )
    if len(fits) == 1 and not square:
        return fits.pop()
    if not fits:
        return "tutorial"  # every misfit is then listed by name
    raise AdapterRejected(
        "the shapes do not tell the tutorial's two letter orders apart: say ?layout=tutorial "
        "(A [r, out], B [in, r]) or ?layout=tutorial-swapped (A [in, r], B [r, out])"
    )


def _fits(found: _Sorted, layout: str, base: BaseShape) -> bool:
    for path, pair in found.pairs.items():
        shape = base.linears.get(base.resolve(path) or "")
        if shape is None or len(pair) < 2:
            continue
        A, B = _canonical(pair["A"], pair["B"], layout)
        if A.dim() != 2 or B.dim() != 2 or (B.shape[0], A.shape[1]) != shape:
            return False
        if A.shape[0] != B.shape[1]:
            return False
    return True


def _canonical(A: Tensor, B: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r], as PEFT has them.

    tutorial: y += x B A with B [in, r], A [r, out]; tutorial-swapped: y += x A B, A [in, r], B [r, out].
    """
    if layout == "peft" or A.dim() != 2 or B.dim() != 2:
        return A, B
    return (B.T, A.T) if layout == "tutorial" else (A.T, B.T)


def _layers(
    pairs: dict[str, dict[str, Tensor]],
    layout: str,
    recipe: Recipe,
    base: BaseShape,
    problems: list[Problem],
) -> tuple[dict[str, LoRALayer], set[float]]:
    layers: dict[str, LoRALayer] = {}
    scales: set[float] = set()
    for path, pair in pairs.items():
        names = {letter: _key(path, letter, layout) for letter in "AB"}
        target = base.resolve(path)
        if target is None or target in layers:
            reason = "is given twice" if target else "is not a linear layer of this base"
            problems += [Problem(f"{path} {reason}", names[letter]) for letter in pair]
            continue
        if len(pair) < 2:
            missing = names["B" if "A" in pair else "A"]
            problems.append(
                Problem(f"has no partner: {missing} is missing", names[next(iter(pair))])
            )
            continue
        A, B = _canonical(pair["A"], pair["B"], layout)
        fault = _misfit(A, B, base.linears[target], recipe.expected_rank(path))
        if fault:
            shapes = f"A {list(pair['A'].shape)}, B {list(pair['B'].shape)}"
            problems.append(Problem(f"{fault} ({shapes} in the file)", names["A"]))
            continue
        scale = recipe.scale(path, A.shape[0])
        scales.add(scale)
        layers[target] = fold(A, B, scale)
        if not all(torch.isfinite(t).all() for t in (layers[target].A, layers[target].B)):
            problems.append(Problem("is not finite in float32 once scaled", names["B"]))
    return layers, scales


def _misfit(A: Tensor, B: Tensor, shape: tuple[int, int], expected_rank: int | None) -> str | None:
    out, in_ = shape
    if A.dim() != 2 or B.dim() != 2:
        return "A and B must be matrices"
    if A.shape[0] != B.shape[1]:
        return f"A's rank {A.shape[0]} is not B's rank {B.shape[1]}"
    if (B.shape[0], A.shape[1]) != (out, in_):
        return f"made for a layer {A.shape[1]} -> {B.shape[0]}; this base's is {in_} -> {out}"
    if expected_rank is not None and A.shape[0] != expected_rank:
        return f"has rank {A.shape[0]}, while the config says {expected_rank}"
    return None


def _key(path: str, letter: str, layout: str) -> str:
    return (
        f"{PEFT_PREFIX}{path}.lora_{letter}.weight" if layout == "peft" else f"{path}.lora.{letter}"
    )


def _summary(
    pairs: dict[str, dict[str, Tensor]], layout: str, base: BaseShape, problems: list[Problem]
) -> str:
    """In words where the whole file is for another base; else a count."""
    widths = [
        _canonical(pair["A"], pair["B"], layout)[0].shape[-1]
        for path, pair in pairs.items()
        if len(pair) == 2 and re.search(r"(query|key|value|[qkv]_lin|Wqkv)$", path)
    ]
    layers = {int(n) for path in pairs for n in re.findall(r"layers?\.(\d{1,3})\.", path)}
    made_for = f"{widths[0]}-wide, {max(layers) + 1}-layer" if widths and layers else ""
    this = f"{base.hidden}-wide, {base.layers}-layer {base.model_type}"
    if widths and layers and (widths[0] != base.hidden or max(layers) >= base.layers):
        return f"made for another base ({made_for}); this base is {this}"
    return f"{len(problems)} tensors of the file cannot be served on this base ({this})"
