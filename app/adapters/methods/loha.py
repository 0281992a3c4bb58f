"""LoHa (Hyeon-Woo et al. 2022): the elementwise product of two low-rank matrices."""

from __future__ import annotations

from app.adapters.methods.layer import Layer, Shared, check_rank, dense, is_low, low_rank
from app.adapters.methods.method import Method, themselves
from app.adapters.recipe import Recipe
from app.adapters.values import Dense, LoRALayer, Scaling


def fold_loha(layer: Layer, recipe: Recipe, _: Shared) -> tuple[LoRALayer | Dense, Scaling]:
    """W += s (w1_a w1_b) * (w2_a w2_b), of rank r * r.

    w_a [out, r], w_b [r, in]. The product's factors are all pairs of columns and of rows.
    Raises Misfit. Source: peft.tuners.loha.layer.LoHaLayer.get_delta_weight.
    """
    a1 = layer.part("hada_w1_a", layer.out, None)
    rank = a1.shape[1]
    check_rank(rank, recipe.expected_rank(layer.path), "hada_w1_a")
    b1 = layer.part("hada_w1_b", rank, layer.in_)
    a2, b2 = layer.part("hada_w2_a", layer.out, rank), layer.part("hada_w2_b", rank, layer.in_)
    scaling = recipe.scaling(layer.path, rank)
    if not is_low(layer, rank * rank):
        delta = (a1 @ b1) * (a2 @ b2) * scaling.scale
        return dense(layer, layer.frozen + delta, layer.new_bias), scaling
    B = (a1[:, :, None] * a2[:, None, :]).flatten(1) * scaling.scale
    A = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return low_rank(layer, A, B, None, layer.new_bias), scaling


LOHA = Method(
    "LOHA",
    fold_loha,
    linear=themselves("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    without_effect=frozenset({"alpha", "rank_dropout", "module_dropout", "use_effective_conv2d"}),
    alpha="alpha",
    free_scale=True,
)
