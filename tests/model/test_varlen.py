"""torch's attention over lengths that differ (CUDA): how it is called, and when it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from app.model import attention
from app.model.batch import NOTHING, runs_of
from app.model.forward_pass import Pass

CPU = torch.device("cpu")


def as_documented(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    num_splits: int,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn by its documentation, in float64. [T, heads, d]."""
    assert ends_q.dtype == torch.int32 and torch.equal(ends_q, ends_k) and num_splits == 1
    outs = []
    for start, end in zip(ends_q[:-1].tolist(), ends_q[1:].tolist(), strict=True):
        assert end - start <= max_q == max_k
        a, b, c = (t[start:end].double().transpose(0, 1) for t in (q, k, v))
        weights = a @ b.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        at = torch.arange(end - start)
        left, right = window_size
        if left >= 0:
            weights = weights.masked_fill(at[:, None] - at[None, :] > left, -torch.inf)
        if right >= 0:
            weights = weights.masked_fill(at[None, :] - at[:, None] > right, -torch.inf)
        outs.append((weights.softmax(-1) @ c).transpose(0, 1))
    return torch.cat(outs).to(q.dtype)


def in_float32(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    ends_q: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    mask_type: int,
    *,
    scale: float | None,
) -> tuple[Tensor]:
    """aten._efficient_attention_forward as torch itself calls it for nested tensors. [1, T, heads, d]."""
    assert q.dtype == torch.float32 and (bias, dropout, mask_type) == (None, 0.0, 0)
    more: dict[str, Any] = {"scale": scale, "window_size": (-1, -1), "num_splits": 1}
    return (as_documented(q[0], k[0], v[0], ends_q, ends_k, max_q, max_k, **more)[None],)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_one_call_over_all_lengths_gives_what_the_runs_give(
    monkeypatch: pytest.MonkeyPatch, window: int | None, scale: float | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_documented)
    monkeypatch.setattr(attention, "efficient_attention", in_float32)
    lengths = [1, 4, 9, 9, 20]
    q, k, v = (torch.randn(1, sum(lengths), 3, 16).to(dtype).transpose(1, 2) for _ in range(3))
    ends = torch.tensor([0, 1, 5, 14, 23, 43], dtype=torch.int32)
    inputs = replace(NOTHING, runs=runs_of(lengths))
    wanted = attention.attend(Pass(inputs), q, k, v, scale, window)
    inputs = replace(inputs, ends=ends, longest=20)
    got = attention.attend(Pass(inputs), q, k, v, scale, window)
    assert got.shape == wanted.shape
    assert_close(got, wanted, rtol=1e-5, atol=attention.TOLERANCE[dtype])


def test_where_it_does_not_run_or_is_wrong_the_runs_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, on the CPU: varlen_attn raises there; its stand-ins are right or wrong."""
    check = attention.varlen_why_not
    assert "does not run here" in (check((4, 8), CPU, torch.bfloat16) or "")
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_documented)
    assert check((4, 8), CPU, torch.bfloat16) is None
    for wrong in (lambda q, *_, **__: q, lambda q, *_, **__: q / 0):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", wrong)
        assert "is off by" in (check((4, 8), CPU, torch.bfloat16) or "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_used_on_a_gpu(dtype: torch.dtype) -> None:
    assert attention.varlen_why_not((12, 64), torch.device("cuda"), dtype) is None
