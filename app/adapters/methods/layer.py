"""One layer of the base with the file's tensors of it, and the three forms that a change can take.

Every formula reads its tensors from a Layer in float64 and rounds once, to float32, in one of the
forms here. Knows no formula, no file and no names of layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.adapters.refusals import Misfit
from app.adapters.values import Dense, LoRALayer


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the base, and its parts: the file's tensors of it by our names.

    path: as the file spells it. weight [out, in] (an embedding's [num, dim]), bias [out]: the base's.
    """

    path: str
    parts: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor | None

    def part(self, part: str, *shape: int | None) -> Tensor:
        """A part in float64 on the CPU, of this shape (None: any length). Raises Misfit."""
        return self.as_filed(part, *shape).double()

    def as_filed(self, part: str, *shape: int | None) -> Tensor:
        """A part in the file's own dtype, of this shape (None: any length). Raises Misfit."""
        tensor = self.parts.get(part)
        if tensor is None:
            raise Misfit(f"has no partner: {part} is missing")
        if tensor.dim() != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise Misfit(f"has shape {list(tensor.shape)}; this base needs [{wanted}]", part)
        return tensor

    @property
    def out(self) -> int:
        """How many values it gives."""
        return self.weight.shape[0]

    @property
    def in_(self) -> int:
        """How many values it takes."""
        return self.weight.shape[1]

    @property
    def frozen(self) -> Tensor:
        """The base's weight in float64 on the CPU."""
        return self.weight.detach().cpu().double()

    @property
    def own_bias(self) -> Tensor:
        """The base's bias [out], or zeros, in float64."""
        if self.bias is None:
            return torch.zeros(self.out, dtype=torch.float64)
        return self.bias.detach().cpu().double()

    @property
    def new_bias(self) -> Tensor:
        """The trained bias where the file has one (PEFT's bias=lora_only, all), else the base's."""
        return self.part("bias", self.out) if "bias" in self.parts else self.own_bias


@dataclass(frozen=True, eq=False)
class Shared:
    """What a formula may need beside its layer.

    tensors: those of the file that belong to no layer. widest: the largest (out, in) of the Linears
    that the file adapts.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    widest: tuple[int, int] = (0, 0)


def check_rank(rank: int, expected: int | None, part: str) -> None:
    """Raises Misfit where the config says another rank."""
    if expected is not None and rank != expected:
        raise Misfit(f"has rank {rank}, while the config says {expected}", part)


def low_rank(layer: Layer, A: Tensor, B: Tensor, gain: Tensor | None, bias: Tensor) -> LoRALayer:
    """As an update. bias [out]: what the layer is to end up with; gain leaves it alone."""
    shift = bias - (layer.own_bias if gain is None else gain * layer.own_bias)
    return LoRALayer(
        to_float(A),
        to_float(B),
        None if gain is None else to_float(gain),
        to_float(shift) if shift.any() else None,
    )


def rank_zero(layer: Layer, gain: Tensor | None, bias: Tensor) -> LoRALayer:
    """As an update without matrices: a gain, a constant, or both."""
    A = torch.zeros(0, layer.in_, dtype=torch.float64)
    return low_rank(layer, A, torch.zeros(layer.out, 0, dtype=torch.float64), gain, bias)


def smallest(
    layer: Layer, A: Tensor, B: Tensor, gain: Tensor | None, bias: Tensor
) -> LoRALayer | Dense:
    """As an update, or where that is no smaller, as a weight of its own."""
    if is_low(layer, A.shape[0]):
        return low_rank(layer, A, B, gain, bias)
    frozen = layer.frozen if gain is None else gain[:, None] * layer.frozen
    return dense(layer, frozen + B @ A, bias)


def is_low(layer: Layer, rank: int) -> bool:
    """Whether two matrices of this rank are smaller than the layer's weight."""
    return rank * (layer.out + layer.in_) < layer.out * layer.in_


def dense(layer: Layer, weight: Tensor, bias: Tensor) -> Dense:
    """As a weight of its own; without a bias where neither the base nor the file has one."""
    has_bias = layer.bias is not None or bool(bias.any())
    return Dense(to_float(weight), to_float(bias) if has_bias else None)


def to_float(tensor: Tensor) -> Tensor:
    """Rounded once, to float32. Raises Misfit for what is no number there."""
    rounded = tensor.to(torch.float32).contiguous()
    if not torch.isfinite(rounded).all():
        raise Misfit("is not finite in float32 once scaled")
    return rounded


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks [m, n] along the diagonal of [sum m, sum n]."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix
