"""PEFT's other methods, folded: what is no LoRA, but changes a Linear all the same.

One function per formula; each gives the smallest exact form: a low-rank update, a gain, or a weight
of its own. In float64, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from app.adapters.config.recipe import Recipe
from app.adapters.methods.fold import (
    Layer,
    Misfit,
    block_diagonal,
    dense,
    low_rank,
    rank_zero,
    smallest,
)
from app.adapters.values import Dense, LoRALayer, Scaling

MAX_OFT_BLOCK = 4096
MOST_TERMS = 64  # PEFT's own is 5; a series that needs more does not converge


def fold_loha(layer: Layer, recipe: Recipe) -> tuple[LoRALayer | Dense, Scaling]:
    """LoHa (Hyeon-Woo et al. 2022): W += s (w1_a w1_b) * (w2_a w2_b), of rank r * r.

    w_a [out, r], w_b [r, in]. The product's factors are all pairs of columns and of rows.
    Source: peft.tuners.loha.layer.LoHaLayer.get_delta_weight.
    """
    a1 = layer.get("hada_w1_a", layer.out, None)
    rank = a1.shape[1]
    _check_rank(layer, recipe, rank, "hada_w1_a")
    b1 = layer.get("hada_w1_b", rank, layer.in_)
    a2, b2 = layer.get("hada_w2_a", layer.out, rank), layer.get("hada_w2_b", rank, layer.in_)
    scaling = recipe.scaling(layer.path, rank)
    scale = scaling.scale
    if rank * rank * (layer.out + layer.in_) >= layer.out * layer.in_:
        delta = (a1 @ b1) * (a2 @ b2) * scale
        return dense(layer, layer.frozen + delta, layer.new_bias), scaling
    B = (a1[:, :, None] * a2[:, None, :]).flatten(1) * scale
    A = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return low_rank(layer, A, B, None, layer.new_bias), scaling


def fold_lokr(layer: Layer, recipe: Recipe) -> tuple[LoRALayer | Dense, Scaling]:
    """LoKr (Yeh et al. 2024): W += (alpha / r) kron(w1, w2); each whole, or a product w_a w_b.

    kron(a b, c d) = kron(a, c) kron(b, d). Source: peft.tuners.lokr.layer.LoKrLayer.get_delta_weight.
    """
    (l1, r1), (l2, r2) = _factors(layer, "lokr_w1"), _factors(layer, "lokr_w2")
    if (l1.shape[0] * l2.shape[0], r1.shape[1] * r2.shape[1]) != (layer.out, layer.in_):
        raise Misfit("its Kronecker product does not have this base's shape", None)
    inner = [part.shape[1] for name, part in layer.parts.items() if name.endswith("_a")]
    expected = recipe.expected_rank(layer.path)
    if expected is None:
        raise Misfit("LoKr's rank is in adapter_config.json: send it along", None)
    if any(rank != expected for rank in inner):
        raise Misfit(f"has rank {inner[0]}, while the config says {expected}", None)
    _check_lokr_form(layer, recipe, expected, (l1, r1), (l2, r2))
    scaling = recipe.scaling(layer.path, expected)
    scale = scaling.scale
    if l1.shape[1] * l2.shape[1] * (layer.out + layer.in_) >= layer.out * layer.in_:
        delta = torch.kron(l1 @ r1, l2 @ r2) * scale
        return dense(layer, layer.frozen + delta, layer.new_bias), scaling
    A, B = torch.kron(r1, r2), torch.kron(l1, l2) * scale
    return low_rank(layer, A, B, None, layer.new_bias), scaling


def fold_ia3(layer: Layer) -> LoRALayer | Dense:
    """IA3 (Liu et al. 2022): the output times l [out, 1], or (feed-forward) the input times l [1, in].

    The output's gain takes the bias along. Source: peft.tuners.ia3.layer.Linear.forward.
    """
    given = layer.parts["ia3_l"]
    if tuple(given.shape) == (layer.out, 1):
        gain = layer.get("ia3_l", layer.out, 1).flatten()
        return rank_zero(layer, gain, gain * layer.new_bias)
    gain = layer.get("ia3_l", 1, layer.in_)
    return dense(layer, layer.frozen * gain, layer.new_bias)


def fold_vera(
    layer: Layer, recipe: Recipe, shared: Mapping[str, Tensor], widest: tuple[int, int]
) -> LoRALayer | Dense:
    """VeRA (Kopiczko et al. 2024): W += (lambda_b * B[:out]) (lambda_d * A[:, :in]).

    A [r, widest in], B [widest out, r]: one random pair for all layers, from the file, or drawn
    again from the config's key as PEFT does at load. Source: peft.tuners.vera.
    """
    d = layer.get("vera_lambda_d", None)
    b = layer.get("vera_lambda_b", layer.out)
    rank, (out, in_) = d.shape[0], widest
    _check_rank(layer, recipe, rank, "vera_lambda_d")
    if "vera_A" in shared or "vera_B" in shared:
        A, B = (shared.get(name, torch.empty(0)).double() for name in ("vera_A", "vera_B"))
    else:
        A, B = _vera_projections(rank, out, in_, recipe.numbers["projection_prng_key"])
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise Misfit(f"vera_A and vera_B do not both have rank {rank}", "vera_lambda_d")
    if A.shape[1] < layer.in_ or B.shape[0] < layer.out:
        raise Misfit("vera_A or vera_B is smaller than this layer", "vera_lambda_d")
    A, B = d[:, None] * A[:, : layer.in_], b[:, None] * B[: layer.out]
    return smallest(layer, A, B, None, layer.new_bias)


def fold_fourier(layer: Layer, recipe: Recipe) -> tuple[Dense, Scaling]:
    """FourierFT (Gao et al. 2024): W += scaling * Re ifft2 of a spectrum that is zero but for n places.

    The places are drawn from the config's seed, as PEFT does at load.
    Source: peft.tuners.fourierft.layer.FourierFTLayer.get_delta_weight.
    """
    values = layer.get("fourierft_spectrum", None)
    size = layer.out * layer.in_
    if len(values) > size:
        raise Misfit(f"has {len(values)} frequencies for {size} places", "fourierft_spectrum")
    generator = torch.Generator().manual_seed(recipe.numbers["random_loc_seed"])
    places = torch.randperm(size, generator=generator)[: len(values)]
    spectrum = torch.zeros(layer.out, layer.in_, dtype=torch.float64)
    spectrum[places // layer.in_, places % layer.in_] = values
    scaling = Scaling("the config's scaling", float(recipe.numbers["scaling"]))
    delta = torch.fft.ifft2(spectrum).real * scaling.scale
    return dense(layer, layer.frozen + delta, layer.new_bias), scaling


def fold_oft(layer: Layer, recipe: Recipe) -> Dense:
    """OFT (Qiu et al. 2023): the input is turned by a block-diagonal R, so W' = W R.T.

    oft_R [blocks, b (b - 1) / 2]: the upper triangles of skew-symmetric matrices. Source:
    peft.tuners.oft.layer.OFTRotationModule.
    """
    upper = layer.get("oft_R", None, None)
    count, block = upper.shape[0], (1 + math.isqrt(1 + 8 * upper.shape[1])) // 2
    if block > MAX_OFT_BLOCK or block * (block - 1) // 2 != upper.shape[1] or layer.in_ % block:
        raise Misfit(f"its blocks do not tile an input of {layer.in_}", "oft_R")
    blocks = layer.in_ // block
    if count != (1 if recipe.numbers["block_share"] else blocks):
        raise Misfit(f"has {count} blocks of {block} for an input of {layer.in_}", "oft_R")
    if recipe.numbers["coft"]:
        upper = _projected(upper, block, recipe.numbers["eps"])
    R = _cayley(upper, block, recipe)
    R = block_diagonal([R[0 if count == 1 else i] for i in range(blocks)])
    return dense(layer, layer.frozen @ R.T, layer.new_bias)


def _check_rank(layer: Layer, recipe: Recipe, rank: int, part: str) -> None:
    expected = recipe.expected_rank(layer.path)
    if expected is not None and rank != expected:
        raise Misfit(f"has rank {rank}, while the config says {expected}", part)


def _factors(layer: Layer, name: str) -> tuple[Tensor, Tensor]:
    """A matrix as a product of the two that the file has, or of itself and the smaller identity."""
    if name not in layer.parts:
        left = layer.get(f"{name}_a", None, None)
        return left, layer.get(f"{name}_b", left.shape[1], None)
    whole = layer.get(name, None, None)
    out, in_ = whole.shape
    if out * in_ > layer.out * layer.in_:
        raise Misfit("is larger than the layer that it is a factor of", name)
    if in_ <= out:
        return whole, torch.eye(in_, dtype=torch.float64)
    return torch.eye(out, dtype=torch.float64), whole


def _check_lokr_form(
    layer: Layer,
    recipe: Recipe,
    rank: int,
    w1: tuple[Tensor, Tensor],
    w2: tuple[Tensor, Tensor],
) -> None:
    """Whether each factor is whole or in two exactly where PEFT looks for it so. Raises Misfit.

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


def _vera_projections(rank: int, out: int, in_: int, key: int) -> tuple[Tensor, Tensor]:
    """Source: peft.tuners.vera.model._kaiming_init, A drawn first."""
    generator = torch.Generator().manual_seed(key)
    drawn = []
    for shape in ((rank, in_), (out, rank)):
        bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(shape[1])
        drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator).double())
    return drawn[0], drawn[1]


def _skew(upper: Tensor, block: int) -> Tensor:
    """[n, b (b - 1) / 2] -> skew-symmetric [n, b, b]."""
    rows, cols = torch.triu_indices(block, block, 1)
    Q = torch.zeros(len(upper), block, block, dtype=upper.dtype)
    Q[:, rows, cols] = upper
    return Q - Q.transpose(1, 2)


def _projected(upper: Tensor, block: int, eps: float) -> Tensor:
    """COFT: each block's matrix at most eps / sqrt(n) long."""
    most = eps / math.sqrt(len(upper))
    length = torch.linalg.matrix_norm(_skew(upper, block))[:, None]
    return torch.where(length <= most, upper, upper * (most / length))


def _cayley(upper: Tensor, block: int, recipe: Recipe) -> Tensor:
    """R = (I + Q)^-1 (I - Q) turned as PEFT has it, or its Neumann series I + 2 Q + 2 Q^2 + … + Q^k."""
    Q = _skew(upper, block)
    eye = torch.eye(block, dtype=Q.dtype).expand_as(Q)
    if not recipe.numbers["use_cayley_neumann"]:
        turned: Tensor = torch.linalg.solve(eye + Q, eye - Q, left=False)
        return turned
    terms = recipe.numbers["num_cayley_neumann_terms"]
    if terms > MOST_TERMS:
        raise Misfit(f"num_cayley_neumann_terms={terms} is over the {MOST_TERMS} that are served")
    R = eye.clone()
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
