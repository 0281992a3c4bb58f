"""A weighted sum of adapters: what each one changes, times its weight, added up.

W' = W + sum_i w_i (W_i - W) for every layer, bias and LayerNorm. Low-rank updates are set side by
side, so their sum is exact and has the sum of their ranks. The head, the labels and the way to
make vectors are those of the first adapter with a head, else of the first.
Source: Ilharco et al. 2023 (task arithmetic); of low-rank updates PEFT's combination_type "cat".
Knows no names but for what a refusal says, and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.methods.layer import Layer, dense, to_float
from app.adapters.refusals import Misfit
from app.adapters.values import Adapter, Dense, LoRALayer, Norm, Rows, move

T = TypeVar("T")
Weighted = list[tuple[float, T]]
CPU = torch.device("cpu")


class CannotCompose(Exception):
    """A sum that is spelled wrong, or that has no meaning, with the reason."""


@dataclass(frozen=True, eq=False)
class Term:
    """One adapter of a sum. name: what a refusal calls it."""

    name: str
    adapter: Adapter
    weight: float


def weighted_sum(terms: Sequence[Term], base: Base) -> Adapter:
    """The adapter that changes the base by the sum, on the CPU in float32. Raises CannotCompose."""
    terms = [replace(t, adapter=move(t.adapter, CPU, torch.float32)) for t in terms]
    refuse_factors(terms)
    linears = _by_path(terms, _linears_of, base)
    norms = _by_path(terms, lambda a: a.norms, base)
    tables = _by_path(terms, lambda a: a.embeddings, base)
    try:
        changed = {path: _linear(path, changes, base) for path, changes in linears.items()}
        return replace(
            lead_of(terms),
            layers={p: c for p, c in changed.items() if isinstance(c, LoRALayer)},
            replaced={p: c for p, c in changed.items() if isinstance(c, Dense)},
            norms={path: _norm(path, changes, base) for path, changes in norms.items()},
            embeddings={path: _table(changes) for path, changes in tables.items()},
            layout="peft", kind="LORA", scalings=(), ignored=(), assumed=(),
        )  # fmt: skip
    except Misfit as error:
        raise CannotCompose(f"the sum {error.reason}") from None


def lead_of(terms: Sequence[Term]) -> Adapter:
    """Whose head, labels and way to make vectors the sum has."""
    headed = (t.adapter for t in terms if t.adapter.head is not None)
    return next(headed, terms[0].adapter)


def refuse_factors(terms: Sequence[Term]) -> None:
    """Raises CannotCompose for an adapter that multiplies the base's output: factors of DoRA and
    IA3 have no sum that both would mean; and for embeddings that it gives row by row.
    """
    for term in terms:
        gains = [path for path, layer in term.adapter.layers.items() if layer.gain is not None]
        if gains:
            raise CannotCompose(
                f"{term.name} multiplies the base's output (DoRA's magnitude, IA3), as at "
                f"{gains[0]}: such factors have no weighted sum. Only what adds to the base can be "
                "composed"
            )
        for path, rows in term.adapter.embeddings.items():
            if any(part is not None for part in (rows.table, rows.gain, rows.slot)):
                raise CannotCompose(
                    f"{term.name} replaces rows of {path}, or rescales them; only low-rank changes "
                    "of an embedding can be composed"
                )


def delta_of(path: str, change: LoRALayer | Dense, base: Base) -> Tensor:
    """W' - W [out, in] of a Linear, in float64."""
    if isinstance(change, LoRALayer):
        return change.B.double() @ change.A.double()
    frozen = base.weight(path).detach().cpu().double()
    return change.weight.double() - frozen


def _linears_of(adapter: Adapter) -> dict[str, LoRALayer | Dense]:
    return {**adapter.layers, **adapter.replaced}


def _by_path(
    terms: Sequence[Term], changes: Callable[[Adapter], Mapping[str, T]], base: Base
) -> dict[str, Weighted[T]]:
    """Each layer that any of them changes, in the base's order; a weight of 0 changes none."""
    each = [(t.weight, changes(t.adapter)) for t in terms if t.weight]
    found = {path: [(w, of[path]) for w, of in each if path in of] for path in base.modules}
    return {path: weighted for path, weighted in found.items() if weighted}


def _linear(path: str, changes: Weighted[LoRALayer | Dense], base: Base) -> LoRALayer | Dense:
    """Low-rank while all are; else a weight of its own."""
    layer = Layer(path, {}, base.weight(path), base.bias(path))
    shift = layer.own_bias * 0
    for weight, change in changes:
        shift = shift + weight * _shift_of(change, layer)
    updates = [(w, c) for w, c in changes if isinstance(c, LoRALayer)]
    if len(updates) == len(changes):
        A = torch.cat([c.A.double() for _, c in updates])
        B = torch.cat([w * c.B.double() for w, c in updates], 1)
        return LoRALayer(to_float(A), to_float(B), None, to_float(shift) if shift.any() else None)
    whole = layer.frozen + sum(w * delta_of(path, c, base) for w, c in changes)
    return dense(layer, whole, layer.own_bias + shift)


def _shift_of(change: LoRALayer | Dense, layer: Layer) -> Tensor:
    """b' - b [out], in float64."""
    if isinstance(change, LoRALayer):
        return layer.own_bias * 0 if change.shift is None else change.shift.double()
    return layer.own_bias * 0 if change.bias is None else change.bias.double() - layer.own_bias


def _norm(path: str, changes: Weighted[Norm], base: Base) -> Norm:
    weight, bias = base.weight(path).detach().cpu().double(), base.bias(path)
    own = None if bias is None else bias.detach().cpu().double()
    summed = weight + sum(w * (c.weight.double() - weight) for w, c in changes)
    if own is None:
        return Norm(to_float(summed), None)
    moved = sum((w * (c.bias.double() - own) for w, c in changes if c.bias is not None), own * 0)
    return Norm(to_float(summed), to_float(own + moved))


def _table(changes: Weighted[Rows]) -> Rows:
    """Each has A [num, r] and B [dim, r], and nothing else."""
    A = torch.cat([c.A for _, c in changes if c.A is not None], 1)
    B = torch.cat([w * c.B.double() for w, c in changes if c.B is not None], 1)
    return Rows(A=A, B=to_float(B))
