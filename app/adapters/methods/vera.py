"""VeRA (Kopiczko et al. 2024): one random low-rank pair for all layers, two vectors for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.adapters.methods.layer import Layer, Shared, check_rank, smallest
from app.adapters.methods.method import Method, themselves
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Dense, LoRALayer


def fold_vera(layer: Layer, recipe: Recipe, shared: Shared) -> tuple[LoRALayer | Dense, None]:
    """W += (lambda_b * B[:out]) (lambda_d * A[:, :in]).

    lambda_d [r], lambda_b [out]; A [r, widest in], B [widest out, r] from the file, or drawn again
    from the config's key as PEFT does at load. Raises Misfit. Source: peft.tuners.vera.
    """
    d = layer.part("vera_lambda_d", None)
    b = layer.part("vera_lambda_b", layer.out)
    rank = d.shape[0]
    check_rank(rank, recipe.expected_rank(layer.path), "vera_lambda_d")
    if shared.tensors:
        nothing = torch.empty(0)
        A, B = (shared.tensors.get(n, nothing).double() for n in ("vera_A", "vera_B"))
    else:
        A, B = _projections(rank, shared.widest, recipe.numbers["projection_prng_key"])
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise Misfit(f"vera_A and vera_B do not both have rank {rank}", "vera_lambda_d")
    if A.shape[1] < layer.in_ or B.shape[0] < layer.out:
        raise Misfit("vera_A or vera_B is smaller than this layer", "vera_lambda_d")
    A, B = d[:, None] * A[:, : layer.in_], b[:, None] * B[: layer.out]
    return smallest(layer, A, B, None, layer.new_bias), None


def _projections(rank: int, widest: tuple[int, int], key: int) -> tuple[Tensor, Tensor]:
    """A [r, widest in] and B [widest out, r] in float64; drawn in float32, A first.

    Source: peft.tuners.vera.model._kaiming_init.
    """
    generator = torch.Generator().manual_seed(key)
    drawn = []
    for shape in ((rank, widest[1]), (widest[0], rank)):
        bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(shape[1])
        drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator).double())
    return drawn[0], drawn[1]


VERA = Method(
    "VERA",
    fold_vera,
    linear=themselves("vera_lambda_b", "vera_lambda_d"),
    shared=themselves("vera_A", "vera_B"),
    numbers={"projection_prng_key": 0, "save_projection": True},
    without_effect=frozenset({"vera_dropout", "d_initial"}),
    saved_if="save_projection",
)
