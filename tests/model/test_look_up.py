"""An adapter's rows of an embedding, against float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from app.adapters.values import Rows
from app.model.lora import look_up


@pytest.mark.parametrize("rank", [1, 4, 8, 64])
def test_a_tokens_bits_do_not_depend_on_the_tokens_beside_it(rank: int) -> None:
    """int8 would make a thousand times as much of a last bit (docs/decisions/0025)."""
    rng = torch.Generator().manual_seed(rank)
    A, B, table = (torch.randn(*s, generator=rng) for s in ((50, rank), (384, rank), (50, 384)))
    change = Rows(A=A, B=B)
    ids = torch.randint(0, 50, (40,), generator=rng)
    together = look_up(change, ids, table[ids])
    wanted = table[ids].double() + A[ids].double() @ B.double().T
    assert_close(together.double(), wanted, rtol=1e-5, atol=1e-5)
    for count in (1, 2, 3, 17):
        assert torch.equal(look_up(change, ids[:count], table[ids[:count]]), together[:count])
