"""IA3 (Liu et al. 2022): a learned factor for each output of a layer, or for each of its inputs."""

from __future__ import annotations

from app.adapters.methods.layer import Layer, Shared, dense, rank_zero
from app.adapters.methods.method import Method, themselves
from app.adapters.recipe import Recipe
from app.adapters.values import Dense, LoRALayer


def fold_ia3(layer: Layer, _: Recipe, __: Shared) -> tuple[LoRALayer | Dense, None]:
    """The output times l [out, 1], or (feed-forward) the input times l [1, in].

    The output's gain takes the bias along. Raises Misfit.
    Source: peft.tuners.ia3.layer.Linear.forward.
    """
    if tuple(layer.parts["ia3_l"].shape) == (layer.out, 1):
        gain = layer.part("ia3_l", layer.out, 1).flatten()
        return rank_zero(layer, gain, gain * layer.new_bias), None
    gain = layer.part("ia3_l", 1, layer.in_)
    return dense(layer, layer.frozen * gain, layer.new_bias), None


IA3 = Method(
    "IA3",
    fold_ia3,
    linear=themselves("ia3_l"),
    without_effect=frozenset({"feedforward_modules", "init_ia3_weights"}),
)
