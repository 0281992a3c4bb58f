"""Adapters combined into one of a chosen rank: SVD, TIES, DARE, pruning by magnitude.

Each layer's change W' - W is combined whole, by PEFT's own functions (peft.utils.merge_utils), and
cut to the rank by its singular values: PEFT's combination types svd, ties_svd, dare_linear_svd,
dare_ties_svd and magnitude_prune_svd. PEFT's types without _svd combine A and B apart, and the
product of two sums is not the sum of the products; they are not offered.
Biases, LayerNorms, embeddings and the head are those of the weighted sum (sums.py).
Sources: Yadav et al. 2023 (TIES), Yu et al. 2024 (DARE).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.sums import CPU, CannotCompose, Term, delta_of, weighted_sum
from app.adapters.values import Adapter, Dense, LoRALayer, move

Combination = Literal["linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
SignMethod = Literal["total", "frequency"]
SEEDED = threading.Lock()  # torch has one generator, which PEFT draws from
Combine = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """How adapters are combined; names are PEFT's. svd_rank: None: their largest. density: the
    share of each change that is kept, for all but linear and svd. seed: of what DARE drops.
    """

    combination_type: Combination = "linear"
    svd_rank: int | None = None
    density: float | None = None
    majority_sign_method: SignMethod = "total"
    seed: int = 0


def combine(terms: Sequence[Term], way: Way, base: Base) -> tuple[Adapter, str]:
    """The one adapter, and what was done in words. Blocks, for seconds.

    Raises CannotCompose.
    """
    summed = weighted_sum(terms, base)
    if way.combination_type == "linear":
        return summed, f"the weighted sum of their changes, exact, of rank {summed.rank}"
    terms = [replace(t, adapter=move(t.adapter, CPU, torch.float32)) for t in terms]
    function = _function(way)
    rank = way.svd_rank or max(t.adapter.rank for t in terms)
    if not rank:
        raise CannotCompose("none of them has a rank: say svd_rank")
    layers: dict[str, LoRALayer] = {}
    kept, whole = 0.0, 0.0
    with SEEDED, torch.random.fork_rng(devices=[]):
        torch.manual_seed(way.seed)
        for path in [*summed.layers, *summed.replaced]:
            change = _combined(path, terms, function, base).double()
            A, B = truncated_svd(change, rank)
            layers[path] = LoRALayer(A.float(), B.float(), None, _shift(path, summed, base))
            kept += float((B @ A).square().sum())
            whole += float(change.square().sum())
    share = (kept / whole) ** 0.5 if whole else 1.0
    adapter = replace(summed, layers=layers, replaced={})
    return adapter, f"{way.combination_type}, cut to rank {rank}: {share:.4f} of the change's norm"


def truncated_svd(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in], B [out, rank] in float64: B A is the nearest to change [out, in] of that rank.

    By the eigenvectors of the smaller of change.T change and change change.T, which cost a
    fraction of an SVD; in float64 the error that squaring brings stays under float32's.
    """
    rank = min(rank, *change.shape)
    if change.shape[0] < change.shape[1]:
        left = torch.linalg.eigh(change @ change.T).eigenvectors[:, -rank:]
        return left.T @ change, left
    right = torch.linalg.eigh(change.T @ change).eigenvectors[:, -rank:]
    return right.T, change @ right


def _function(way: Way) -> Combine:
    """Raises CannotCompose where the density, or PEFT, is missing."""
    kind, density, sign = way.combination_type, way.density, way.majority_sign_method
    if kind in ("linear", "svd"):
        return _sum
    if density is None:
        raise CannotCompose(f"{kind} needs density: the share of each change to keep, 0 to 1")
    try:
        from peft.utils import merge_utils
    except ImportError:
        raise CannotCompose(
            f"{kind} is PEFT's, which this server lacks: pip install 'bert-lora-server[certify]'; "
            "linear and svd need no PEFT"
        ) from None
    function = getattr(merge_utils, kind)  # they are called alike
    more = (sign,) if kind in ("ties", "dare_ties") else ()
    return lambda deltas, weights: function(deltas, weights, density, *more)


def _sum(deltas: list[Tensor], weights: Tensor) -> Tensor:
    return torch.einsum("n,nij->ij", weights, torch.stack(deltas))


def _combined(path: str, terms: Sequence[Term], function: Combine, base: Base) -> Tensor:
    """One layer's combined change [out, in], of those terms that change it.

    In float32, as PEFT combines it: what DARE drops depends on the dtype.
    """
    changes: list[tuple[float, LoRALayer | Dense]] = []
    for term in terms:
        change = term.adapter.layers.get(path) or term.adapter.replaced.get(path)
        if change is not None:
            changes.append((term.weight, change))
    deltas = [delta_of(path, change, base).float() for _, change in changes]
    return function(deltas, torch.tensor([weight for weight, _ in changes]))


def _shift(path: str, summed: Adapter, base: Base) -> Tensor | None:
    """The weighted sum's change of the bias."""
    if path in summed.layers:
        return summed.layers[path].shift
    bias, own = summed.replaced[path].bias, base.bias(path)
    if bias is None:
        return None
    return bias if own is None else bias - own.detach().cpu().float()
