"""LoRA and its kin, folded: one layer's tensors + the base's weight -> the smallest exact change.

One function per formula, each named after PEFT's class that it follows. Folded in float64, rounded
once to float32. Knows one layer at a time: no files, no names of layouts. What is no low-rank
update of its own (LoHa, IA3, OFT, …) is in fold_other.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from app.adapters.config.recipe import Recipe
from app.adapters.values import Dense, LoRALayer, Scaling


class Misfit(Exception):
    """A layer's tensors that cannot be served, with the reason. part: the one at fault."""

    def __init__(self, reason: str, part: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.part = part


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the base and what the file says of it.

    path: as the file spells it. weight [out, in] (an embedding's [num, dim]), bias [out]: the base's.
    """

    path: str
    parts: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor | None

    def get(self, part: str, *shape: int | None) -> Tensor:
        """A part in float64 on the CPU, of this shape (None: any length). Raises Misfit."""
        return self.whole(part, *shape).double()

    def whole(self, part: str, *shape: int | None) -> Tensor:
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
        return self.weight.shape[0]

    @property
    def in_(self) -> int:
        return self.weight.shape[1]

    @property
    def frozen(self) -> Tensor:
        """The base's weight in float64 on the CPU."""
        return self.weight.detach().cpu().double()

    @property
    def own_bias(self) -> Tensor:
        """The base's bias, or zeros, in float64."""
        if self.bias is None:
            return torch.zeros(self.out, dtype=torch.float64)
        return self.bias.detach().cpu().double()

    @property
    def new_bias(self) -> Tensor:
        """The trained bias where the file has one (PEFT's bias=lora_only, all), else the base's."""
        return self.get("bias", self.out) if "bias" in self.parts else self.own_bias


def fold_lora(layer: Layer, recipe: Recipe) -> tuple[LoRALayer | Dense, Scaling]:
    """LoRA with whatever its config adds, and its scale.

    y = b + g * (W' x + s B A x + s c): g = 1, or DoRA's m / ||W' + s B A|| per output row (Liu et
    al. 2024); c = lora_B's bias; W' = W, or what PiSSA, OLoRA or KaSA leave of it (_residual).
    A [r, in], B [out, r]. Raises Misfit. Source: peft.tuners.lora.layer.Linear, lora.variants.
    """
    A, B = _matrices(layer, recipe)
    if not A.shape[0]:
        raise Misfit("has rank 0: there is nothing in it", "A")
    rank = recipe.expected_rank(layer.path) or A.shape[0]
    most = (
        min(layer.out, layer.in_) if recipe.init else rank
    )  # PiSSA, OLoRA cut a rank over the layer's
    if A.shape[0] != min(rank, most):
        raise Misfit(f"has rank {A.shape[0]}, while the config says {rank}", "A")
    scaling = recipe.scaling(layer.path, rank)
    scale = scaling.scale
    B = B * scale
    if "diag" in layer.parts:
        B = B * layer.get("diag", A.shape[0])
    elif recipe.truncated:
        raise Misfit("the config says KaSA, and lora_diag is missing", "A")
    shift = layer.get("B.bias", layer.out) * scale if "B.bias" in layer.parts else None
    removed = _residual(layer, recipe, A.shape[0], scale)
    if removed is not None:
        A, B = torch.cat([A, removed[0]]), torch.cat([B, -removed[1]], dim=1)
    gain = None
    if "magnitude" in layer.parts:
        norm = torch.linalg.vector_norm(layer.frozen + B @ A, dim=1)
        gain = _magnitude(layer) / norm
        B = gain[:, None] * B
    bias = layer.new_bias if shift is None else layer.new_bias + shift
    if removed is not None:
        return smallest(layer, A, B, gain, bias), scaling
    return low_rank(layer, A, B, gain, bias), scaling


def fold_adalora(layer: Layer, recipe: Recipe) -> tuple[LoRALayer, Scaling]:
    """AdaLoRA (Zhang et al. 2023): y += (alpha / (init_r + 1e-5)) B (E * A) x.

    A [r, in], E [r, 1], B [out, r]; r is what is left of init_r, perhaps nothing. Raises Misfit.
    Source: peft.tuners.adalora.layer.SVDLinear; lora_alpha <= 0 stands for r.
    """
    A = layer.get("A", None, layer.in_)
    rank = A.shape[0]
    E, B = layer.get("E", rank, 1), layer.get("B", layer.out, rank)
    ranks = float(recipe.numbers["init_r"])
    if rank > ranks:
        raise Misfit(f"has rank {rank}, over the config's init_r {ranks:g}", "A")
    said = recipe.scaling(layer.path, 1).scale
    alpha = said if said > 0 else float(rank)
    scaling = Scaling("alpha / (init_r + 1e-5)", alpha / (ranks + 1e-5), alpha, ranks)
    return low_rank(layer, E * A, B * scaling.scale, None, layer.new_bias), scaling


def low_rank(layer: Layer, A: Tensor, B: Tensor, gain: Tensor | None, bias: Tensor) -> LoRALayer:
    """As an update. bias [out]: the one that the layer is to end up with, which gain leaves alone."""
    shift = bias - (layer.own_bias if gain is None else gain * layer.own_bias)
    return LoRALayer(
        to_float(A),
        to_float(B),
        None if gain is None else to_float(gain),
        to_float(shift) if shift.any() else None,
    )


def smallest(
    layer: Layer, A: Tensor, B: Tensor, gain: Tensor | None, bias: Tensor
) -> LoRALayer | Dense:
    """As an update, or where that is no smaller, as a weight of its own."""
    if A.shape[0] * (layer.out + layer.in_) < layer.out * layer.in_:
        return low_rank(layer, A, B, gain, bias)
    frozen = layer.frozen if gain is None else gain[:, None] * layer.frozen
    return dense(layer, frozen + B @ A, bias)


def dense(layer: Layer, weight: Tensor, bias: Tensor) -> Dense:
    """As a weight of its own; without a bias where neither the base nor the file has one."""
    has_bias = layer.bias is not None or bool(bias.any())
    return Dense(to_float(weight), to_float(bias) if has_bias else None)


def to_float(tensor: Tensor) -> Tensor:
    """Rounded once, to float32. Raises Misfit for what is no number there."""
    found = tensor.to(torch.float32).contiguous()
    if not torch.isfinite(found).all():
        raise Misfit("is not finite in float32 once scaled")
    return found


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks [m, n] along the diagonal of [sum m, sum n]."""
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found


def rank_zero(layer: Layer, gain: Tensor | None, bias: Tensor) -> LoRALayer:
    """An update without matrices: a gain, a constant, or both."""
    A = torch.zeros(0, layer.in_, dtype=torch.float64)
    return low_rank(layer, A, torch.zeros(layer.out, 0, dtype=torch.float64), gain, bias)


def _matrices(layer: Layer, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r]; BD-LoRA's blocks are set on the diagonal of the whole matrix.

    Source: peft.tuners.lora.variants.BlockDiagonalLinear.weight_as_blockdiagonal_matrix.
    """
    A, B = layer.get("A", None, None), layer.get("B", None, None)
    if recipe.blocks is not None:
        if A.shape[1] * recipe.blocks == layer.in_ and A.shape[0] % recipe.blocks == 0:
            A = block_diagonal(A.chunk(recipe.blocks))
        if B.shape[1] * recipe.blocks == A.shape[0] and layer.out % recipe.blocks == 0:
            B = block_diagonal(B.chunk(recipe.blocks))
    if A.shape[0] != B.shape[1]:
        raise Misfit(f"A's rank {A.shape[0]} is not B's rank {B.shape[1]}", "A")
    if (B.shape[0], A.shape[1]) != (layer.out, layer.in_):
        raise Misfit(
            f"made for a layer {A.shape[1]} -> {B.shape[0]}; this base's is {layer.in_} -> {layer.out}",
            "A",
        )
    return A, B


def _residual(
    layer: Layer, recipe: Recipe, rank: int, scale: float
) -> tuple[Tensor, Tensor] | None:
    """What PEFT takes out of the base's weight at load, as A0 [n, in] and B0 [out, n], or None.

    PiSSA (Meng et al. 2024) the r largest singular values, OLoRA (Büyükakyüz 2024) s times the first
    r of QR; then KaSA (2024) the r smallest singular values of what is left. In float32, as PEFT does,
    so that the base's own nearly equal singular values fall the same way.
    """
    if recipe.init is None and not recipe.truncated:
        return None
    weight = layer.weight.detach().cpu().float()
    pairs = []
    match recipe.init:
        case "olora":
            Q, R = torch.linalg.qr(weight)
            pairs.append((R[:rank], scale * Q[:, :rank]))
        case "pissa":
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
            pairs.append((Vh[:rank], U[:, :rank] * S[:rank]))
        case None:
            pass
        case _:
            assert_never(recipe.init)
    if recipe.truncated:
        for A0, B0 in pairs:
            weight = weight - B0 @ A0
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        if rank >= len(S):
            raise Misfit(f"KaSA's rank {rank} is not under the layer's {len(S)}", "A")
        pairs.append((Vh[-rank:], U[:, -rank:] * S[-rank:]))
    return torch.cat([A for A, _ in pairs]).double(), torch.cat([B for _, B in pairs], 1).double()


def _magnitude(layer: Layer) -> Tensor:
    """DoRA's m [out]; early PEFT saved it as [1, out] or [out, 1]."""
    if layer.parts["magnitude"].numel() != layer.out:
        layer.get("magnitude", layer.out)  # raises, naming the shapes
    return layer.parts["magnitude"].double().reshape(layer.out)
