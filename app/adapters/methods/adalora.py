"""AdaLoRA (Zhang et al. 2023): LoRA as a singular value decomposition, pruned while training."""

from __future__ import annotations

from app.adapters.methods import lora
from app.adapters.methods.layer import Layer, Shared, low_rank
from app.adapters.methods.method import Method
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import LoRALayer, Scaling


def fold_adalora(layer: Layer, recipe: Recipe, _: Shared) -> tuple[LoRALayer, Scaling]:
    """y += (alpha / (init_r + 1e-5)) B (E * A) x.

    A [r, in], E [r, 1], B [out, r]; r is what pruning left of init_r, perhaps nothing. Raises
    Misfit. Source: peft.tuners.adalora.layer.SVDLinear; lora_alpha <= 0 stands for r.
    """
    A = layer.part("A", None, layer.in_)
    rank = A.shape[0]
    E, B = layer.part("E", rank, 1), layer.part("B", layer.out, rank)
    first_rank = float(recipe.numbers["init_r"])
    if rank > first_rank:
        raise Misfit(f"has rank {rank}, over the config's init_r {first_rank:g}", "A")
    alpha = recipe.scaling(layer.path, 1).scale
    alpha = alpha if alpha > 0 else float(rank)
    scaling = Scaling("alpha / (init_r + 1e-5)", alpha / (first_rank + 1e-5), alpha, first_rank)
    return low_rank(layer, E * A, B * scaling.scale, None, layer.new_bias), scaling


ADALORA = Method(
    "ADALORA",
    fold_adalora,
    linear={"lora_A": "A", "lora_B": "B", "lora_E": "E"},
    numbers={"init_r": 12},
    without_effect=lora.WITHOUT_EFFECT
    | {"target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"},
    refused=lora.REFUSED,
    patterns=False,
)
