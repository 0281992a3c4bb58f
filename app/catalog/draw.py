"""Which requests another version of a name takes part in, and how its answers compare."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from app.catalog.pointer import Trial
from app.model.sequence import Wanted

SAME_COSINE = 0.99
SAME_VALUE = 0.01  # of a score without labels beside it, relative to it or to 1


def takes_part(trial: Trial, value: str | None) -> bool:
    """value: what the trial sticks by, the same each time; None: each request is drawn."""
    share = random.random() if value is None else _share(trial.version, value)
    return 100 * share < trial.percent


def _share(version: str, value: str) -> float:
    """From 0 to 1, the same at every start; who was in stays in as the percentage rises."""
    digest = hashlib.sha256(f"{version}:{value}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def distance(rows: Sequence[Tensor], others: Sequence[Tensor]) -> float | None:
    """The mean over inputs of ||other - row|| / ||row||; None where their shapes differ."""
    if any(a.shape != b.shape for a, b in zip(rows, others, strict=True)):
        return None
    apart = [
        float((b - a).norm() / a.norm().clamp_min(1e-12)) for a, b in zip(rows, others, strict=True)
    ]
    return sum(apart) / len(apart)


def same(row: Tensor, other: Tensor, kind: Wanted) -> bool:
    """Whether a client would see the same: the best labels, or vectors of nearly one direction.

    row, other: float32 [labels], [words, labels], [dimensions] or [tokens, H], as kind says.
    """
    if row.shape != other.shape:
        return False
    match kind:
        case "embedding" | "states":
            alike = torch.nn.functional.cosine_similarity(row, other, dim=-1)
            return bool((alike >= SAME_COSINE).all())
        case "logits":
            if row.shape[-1] == 1:
                near = (row - other).abs() <= SAME_VALUE * row.abs().clamp_min(1)
                return bool(near.all())
            return torch.equal(row.argmax(-1), other.argmax(-1))
        case _:
            assert_never(kind)
