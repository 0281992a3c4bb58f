"""OFT (Qiu et al. 2023): the input is turned by small rotations before the frozen weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.adapters.methods.layer import Layer, Shared, block_diagonal, dense
from app.adapters.methods.method import Method
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Dense

MAX_BLOCK = 4096
MAX_TERMS = 64  # PEFT's own is 5; a series that needs more does not converge


def fold_oft(layer: Layer, recipe: Recipe, _: Shared) -> tuple[Dense, None]:
    """W' = W R.T for a block-diagonal R.

    oft_R [blocks, b (b - 1) / 2]: the upper triangles of skew-symmetric matrices [b, b]. Raises
    Misfit. Source: peft.tuners.oft.layer.OFTRotationModule.
    """
    upper = layer.part("oft_R", None, None)
    count, block = upper.shape[0], (1 + math.isqrt(1 + 8 * upper.shape[1])) // 2
    if block > MAX_BLOCK or block * (block - 1) // 2 != upper.shape[1] or layer.in_ % block:
        raise Misfit(f"its blocks do not tile an input of {layer.in_}", "oft_R")
    blocks = layer.in_ // block
    if count != (1 if recipe.numbers["block_share"] else blocks):
        raise Misfit(f"has {count} blocks of {block} for an input of {layer.in_}", "oft_R")
    if recipe.numbers["coft"]:
        upper = _projected(upper, block, recipe.numbers["eps"])
    Q = _skew(upper, block)
    R = _neumann(Q, recipe) if recipe.numbers["use_cayley_neumann"] else _cayley(Q)
    R = block_diagonal([R[0 if count == 1 else i] for i in range(blocks)])
    return dense(layer, layer.frozen @ R.T, layer.new_bias), None


def _skew(upper: Tensor, block: int) -> Tensor:
    """[n, b (b - 1) / 2] -> skew-symmetric [n, b, b]."""
    rows, columns = torch.triu_indices(block, block, 1)
    Q = torch.zeros(len(upper), block, block, dtype=upper.dtype)
    Q[:, rows, columns] = upper
    return Q - Q.transpose(1, 2)


def _projected(upper: Tensor, block: int, eps: float) -> Tensor:
    """COFT: each block's matrix at most eps / sqrt(n) long."""
    longest = eps / math.sqrt(len(upper))
    length = torch.linalg.matrix_norm(_skew(upper, block))[:, None]
    return torch.where(length <= longest, upper, upper * (longest / length))


def _cayley(Q: Tensor) -> Tensor:
    """R = (I + Q)^-1 (I - Q), turned as PEFT has it. Q, R [n, b, b]."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q)
    R: Tensor = torch.linalg.solve(eye + Q, eye - Q, left=False)
    return R


def _neumann(Q: Tensor, recipe: Recipe) -> Tensor:
    """The same as a series: I + 2 Q + 2 Q^2 + … + Q^k. Raises Misfit for an endless one."""
    terms = recipe.numbers["num_cayley_neumann_terms"]
    if terms > MAX_TERMS:
        raise Misfit(f"num_cayley_neumann_terms={terms} is over the {MAX_TERMS} that are served")
    R = torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q).clone()
    if terms > 1:
        R = R + 2 * Q
    if terms > 2:
        power = Q @ Q
        R = R + 2 * power
        for _ in range(3, terms - 1):
            power = power @ Q
            R = R + 2 * power
        R = R + power @ Q
    return R


OFT = Method(
    "OFT",
    fold_oft,
    linear={"oft_R.weight": "oft_R"},
    numbers={"coft": False, "eps": 6e-5, "block_share": False, "use_cayley_neumann": True,
             "num_cayley_neumann_terms": 5},
    without_effect=frozenset({"oft_block_size", "module_dropout"}),
    before="PEFT before 0.18 computed OFT otherwise; it is served as PEFT 0.21 loads the file",
    no_longer={
        r"\.oft_[rs]$": "is OFT's as PEFT before 0.16 wrote it, which PEFT itself reads no more"
    },
)  # fmt: skip
