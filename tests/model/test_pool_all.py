"""A GPU's pooling of all sequences at once gives what each one's own pooling gives."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from app.adapters.sentence import Pooling
from app.model.head import pool, pool_all

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POOLINGS: list[Pooling] = ["mean", "max", "last", "cls"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("members", [[0, 1, 2, 3], [2], [3, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_together_is_pooled_each_by_itself(
    pooling: Pooling, members: list[int], dtype: torch.dtype
) -> None:
    starts, lengths = [0, 1, 6, 9], [1, 5, 3, 40]
    hidden = torch.randn(49, 24).to(DEVICE, dtype)
    rows = [hidden[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    wanted = torch.stack([pool(rows[i].double(), pooling) for i in members])
    got = pool_all(hidden, starts, lengths, members, pooling)
    assert got.dtype == torch.float32
    assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_poolers_output_is_no_pooling() -> None:
    with pytest.raises(ValueError, match="pooler"):
        pool_all(torch.randn(2, 4), [0], [2], [0], "pooler")
