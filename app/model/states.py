"""One text's hidden states, and how far an adapter's are from the base's. Knows tensors alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class States:
    """Float64. layers: [T, H] after each layer. out: the last one, flat, then the pooler's."""

    layers: list[Tensor]
    out: Tensor


@dataclass(frozen=True)
class Delta:
    """relative: ||out(adapter) - out(base)|| / ||out(base)||; layers: the same per layer."""

    relative: float
    layers: list[float]


def distance(own: States, base: States) -> Delta:
    """How far an adapter's own states are from the base's on one text: relative L2 distance."""
    per_layer = [_relative(o, b) for o, b in zip(own.layers, base.layers, strict=True)]
    return Delta(_relative(own.out, base.out), per_layer)


def _relative(own: Tensor, base: Tensor) -> float:
    return float((own - base).norm() / base.norm())
