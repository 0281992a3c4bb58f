"""Batches of inputs of like length, so that hardly anything is padded."""

from __future__ import annotations

import random
from collections.abc import Sequence

POOL = 32  # batches that are sorted by length together: the order stays random, the lengths meet


def shuffled(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Places of all inputs, in batches, another order for each seed. lengths: in tokens."""
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lambda i: lengths[i])
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(batches)
    return batches


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The longest last."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]
