"""LoKr (Yeh et al. 2024): a Kronecker product of two matrices, each whole or a product of two."""

from __future__ import annotations

import torch
from torch import Tensor

from app.adapters.methods.layer import Layer, Shared, dense, is_low, low_rank
from app.adapters.methods.method import Method, themselves
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Dense, LoRALayer, Scaling

Factors = tuple[Tensor, Tensor]


def fold_lokr(layer: Layer, recipe: Recipe, _: Shared) -> tuple[LoRALayer | Dense, Scaling]:
    """W += (alpha / r) kron(w1, w2); w1, w2 whole, or a product w_a w_b of inner length r.

    kron(a b, c d) = kron(a, c) kron(b, d). Raises Misfit.
    Source: peft.tuners.lokr.layer.LoKrLayer.get_delta_weight.
    """
    (l1, r1), (l2, r2) = _factors(layer, "lokr_w1"), _factors(layer, "lokr_w2")
    if (l1.shape[0] * l2.shape[0], r1.shape[1] * r2.shape[1]) != (layer.out, layer.in_):
        raise Misfit("its Kronecker product does not have this base's shape")
    rank = recipe.expected_rank(layer.path)
    if rank is None:
        raise Misfit("LoKr's rank is in adapter_config.json: send it along")
    inner = [part.shape[1] for name, part in layer.parts.items() if name.endswith("_a")]
    if any(length != rank for length in inner):
        raise Misfit(f"has rank {inner[0]}, while the config says {rank}")
    _check_form(layer, recipe, rank, (l1, r1), (l2, r2))
    scaling = recipe.scaling(layer.path, rank)
    if not is_low(layer, l1.shape[1] * l2.shape[1]):
        delta = torch.kron(l1 @ r1, l2 @ r2) * scaling.scale
        return dense(layer, layer.frozen + delta, layer.new_bias), scaling
    A, B = torch.kron(r1, r2), torch.kron(l1, l2) * scaling.scale
    return low_rank(layer, A, B, None, layer.new_bias), scaling


def _factors(layer: Layer, name: str) -> Factors:
    """A matrix as a product of the two that the file has, or of itself and the smaller identity."""
    if name not in layer.parts:
        left = layer.part(f"{name}_a", None, None)
        return left, layer.part(f"{name}_b", left.shape[1], None)
    whole = layer.part(name, None, None)
    out, in_ = whole.shape
    if out * in_ > layer.out * layer.in_:
        raise Misfit("is larger than the layer that it is a factor of", name)
    if in_ <= out:
        return whole, torch.eye(in_, dtype=torch.float64)
    return torch.eye(out, dtype=torch.float64), whole


def _check_form(layer: Layer, recipe: Recipe, rank: int, w1: Factors, w2: Factors) -> None:
    """Is each factor whole, or in two, where PEFT looks for it so? Raises Misfit.

    Source: peft.tuners.lokr.layer.LoKrLayer.update_layer.
    """
    large1, large2 = (max(left.shape[0], right.shape[1]) for left, right in (w1, w2))
    in_two = {
        "lokr_w1": bool(recipe.numbers["decompose_both"]) and rank < large1 / 2,
        "lokr_w2": rank < large2 / 2,
    }
    for name, split in in_two.items():
        if (name in layer.parts) == split:
            form = "in two, as _a and _b" if split else "whole"
            raise Misfit(f"with this config PEFT looks for {name} {form}: it would leave this out")


LOKR = Method(
    "LOKR",
    fold_lokr,
    linear=themselves(
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"
    ),
    numbers={"decompose_both": False},
    without_effect=frozenset({
        "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d", "decompose_factor",
        "rank_dropout_scale",
    }),
    alpha="alpha",
    free_scale=True,
    before="PEFT before 0.13 left alpha / r out of LoKr; it is served as PEFT 0.21 loads it: if it "
    "was trained with such a version, write alpha equal to r into its config",
)  # fmt: skip
