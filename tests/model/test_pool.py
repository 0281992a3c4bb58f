"""The pooling of all sequences at once, against each one's own in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from app.adapters.sentence import Pooling
from app.model.head import pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POOLINGS: list[Pooling] = ["mean", "max", "last", "cls"]


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.amax(0),
    "last": lambda rows: rows[-1],
    "cls": lambda rows: rows[0],
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("members", [[0, 1, 2, 3], [2], [3, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_together_is_pooled_each_by_itself(
    pooling: Pooling, members: list[int], dtype: torch.dtype
) -> None:
    starts, lengths = np.array([0, 1, 6, 9]), np.array([1, 5, 3, 40])
    hidden = torch.randn(49, 24).to(DEVICE, dtype)
    rows = [hidden[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    wanted = torch.stack([OF_ONE[pooling](rows[i].double()) for i in members])
    got = pool(hidden, starts[members], lengths[members], pooling)
    assert got.dtype == torch.float32
    assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_poolers_output_is_no_pooling() -> None:
    with pytest.raises(ValueError, match="pooler"):
        pool(torch.randn(2, 4), np.array([0]), np.array([2]), "pooler")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sequences_bits_do_not_depend_on_its_neighbours(pooling: Pooling) -> None:
    lengths = np.array([1, 5, 3, 40, 64, 2])
    starts = np.cumsum(lengths) - lengths
    hidden = torch.randn(int(lengths.sum()), 384).to(DEVICE)
    together = pool(hidden, starts, lengths, pooling)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own = hidden[start : start + length].clone()
        assert torch.equal(pool(own, np.array([0]), np.array([length]), pooling)[0], together[i])
