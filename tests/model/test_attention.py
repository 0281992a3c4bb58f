"""Attention that numba compiles, and what torch computes in its place, against float64."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from app.model import attention, kernel_attention
from app.model.batch import NOTHING, Inputs, runs_of
from app.model.forward_pass import Pass
from app.model.vectors import LANES

LONGEST = kernel_attention.LONGEST
MIXED = [1, 2, 5, 5, 16, 17, 31, 33, 63, LONGEST, LONGEST + 1, 100]


def passing(lengths: list[int]) -> Pass:
    empty = NOTHING.input_ids
    return Pass(Inputs(empty, empty, empty, None, max(lengths), runs_of(lengths)))


def drawn(lengths: list[int], heads: int, width: int, seed: int = 0) -> list[Tensor]:
    """q, k and v [1, heads, T, width], parts of one product's columns as in a forward."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, sum(lengths), 3 * heads * width, generator=rng)
    parts = rows.split(heads * width, -1)
    return [part.view(1, -1, heads, width).transpose(1, 2) for part in parts]


def exactly(parts: list[Tensor], lengths: list[int], scale: float | None = None) -> Tensor:
    """In float64, text by text."""
    outs = []
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        q, k, v = (t[:, :, end - length : end].double() for t in parts)
        weights = q @ k.transpose(2, 3) * (scale or q.shape[-1] ** -0.5)
        outs.append((weights.softmax(-1) @ v).transpose(1, 2))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("width", [LANES, 2 * LANES, 3 * LANES, 4 * LANES])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_texts_of_any_length_are_attended_to_exactly(width: int, scale: float | None) -> None:
    parts = drawn(MIXED, 3, width)
    got = attention.attend_compiled(passing(MIXED), *parts, scale)
    assert (got.shape, got.is_contiguous()) == ((1, sum(MIXED), 3, width), True)
    assert_close(got.double(), exactly(parts, MIXED, scale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("times", [1.0, 30.0, 1e4])
def test_scores_of_any_size_are_weighed_as_torch_weighs_them(times: float) -> None:
    q, k, v = drawn(MIXED, 2, 2 * LANES)
    parts = [q * times, k, v]
    off = (attention.attend_compiled(passing(MIXED), *parts) - exactly(parts, MIXED)).abs().max()
    torchs = (attention.attend(passing(MIXED), *parts) - exactly(parts, MIXED)).abs().max()
    assert off <= 2 * torchs + 1e-6


@pytest.mark.parametrize("score", [-120.0, -1000.0, -math.inf])
def test_what_is_far_below_the_largest_score_weighs_nothing(score: float) -> None:
    q, k, v = (torch.zeros(1, 1, 2, LANES) for _ in range(3))
    q[..., 0], k[0, 0, 1, 0], v[0, 0, 0], v[0, 0, 1] = 1, score, 1, 1e38
    assert torch.equal(
        attention.attend_compiled(passing([2]), q, k, v, 1.0), v[:, :, :1].repeat(1, 2, 1, 1)
    )


def test_a_texts_bits_do_not_depend_on_the_texts_beside_it() -> None:
    lengths = [7, 20, 64, 33]
    parts = drawn(lengths, 2, 2 * LANES)
    whole = attention.attend_compiled(passing(lengths), *parts)
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        rows = slice(end - length, end)
        own = [t[:, :, rows] for t in parts]
        assert torch.equal(attention.attend_compiled(passing([length]), *own), whole[:, rows])
        again = [torch.cat([t, t], 2).contiguous() for t in own]  # laid out otherwise, and twice
        twice = attention.attend_compiled(passing([length, length]), *again)
        assert torch.equal(twice, torch.cat([whole[:, rows]] * 2, 1))


def test_what_is_not_finite_stays_so_in_its_own_rows() -> None:
    lengths = [5, 9]
    q, k, v = drawn(lengths, 2, LANES)
    q[0, 1, 3, 0] = math.nan
    got = attention.attend_compiled(passing(lengths), q, k, v)
    assert got[0, :, :, 0].isnan().nonzero().tolist() == [[3, 1]]
    q[0, 1, 3, 0] = math.inf
    assert attention.attend_compiled(passing(lengths), q, k, v)[0, 3, 1].isnan().all()


@pytest.mark.parametrize(("width", "window"), [(LANES // 2, None), (LANES, 5), (LANES, 65)])
def test_what_the_kernel_is_not_for_is_torchs(
    width: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = drawn(MIXED, 2, width)
    wanted = attention.attend(passing(MIXED), *parts, window=window)
    short = window != 5 and not width % LANES
    served = F.scaled_dot_product_attention
    lengths = []

    def counted(q: Tensor, *rest: Tensor, **more: object) -> Tensor:
        lengths.append(q.shape[2])
        return served(q, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    got = attention.attend_compiled(passing(MIXED), *parts, window=window)
    assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert lengths == [n for n in dict.fromkeys(MIXED) if not short or n > LONGEST]
