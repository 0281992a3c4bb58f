"""Attention over packed sequences, in the shape that transformers' attention interface asks for.

Knows runs of equal length; nothing of adapters. Each sequence attends to itself alone.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.model import kernel_attention, placeholders
from app.model.batch import Run, runs_of
from app.model.forward_pass import Pass
from app.model.machine import first_line
from app.model.vectors import LANES

efficient_attention = torch.ops.aten._efficient_attention_forward
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of values near 1
RUNS_SERVE = "one call for each length serves"


def as_placeholder(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' modules call; attend computes it. sliding_window: transformers' flash
    convention, one more than the largest distance that is attended to (ModernBERT's local layers).
    """
    return placeholders.attention(query, key, value, scaling, sliding_window), None


def attend(
    running: Pass,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """One scaled_dot_product_attention per run of equal lengths, or one call for all.

    query, key, value [1, heads, T, d] -> [1, T, heads, d], contiguous. window: as_placeholder's
    sliding_window.
    """
    inputs = running.inputs
    if inputs.ends is not None and _serves(query.dtype, window):
        return _varlen(query, key, value, inputs.ends, inputs.longest, scale, window)
    outs = [_of_run(run, query, key, value, scale, window) for run in inputs.runs]
    return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


def attend_compiled(
    running: Pass,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """As attend, in float32 on a CPU: one call for all texts that the kernel is for."""
    inputs, width = running.inputs, query.shape[-1]
    local = window is not None and window < kernel_attention.LONGEST
    if width % LANES or local or inputs.ends is not None:
        return attend(running, query, key, value, scale, window)
    tokens, heads = inputs.runs[-1].rows.stop, query.shape[1]
    out = query.new_empty(1, tokens, heads, width)
    if len(inputs.short):
        parts = [t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value)]
        places = np.array([t.data_ptr() for t in parts])
        strides = np.array([(4 * t.stride(1), 4 * t.stride(2)) for t in parts])
        factor = np.float32(width**-0.5 if scale is None else scale)
        rows = out.view(tokens, -1).numpy()
        kernel_attention.attend(places, strides, rows, inputs.short, heads, factor)
    for run in inputs.long:
        out[:, run.rows] = _of_run(run, query, key, value, scale, window)
    return out


def _of_run(
    run: Run, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """[1, rows of the run, heads, d]."""
    q, k, v = (_sequences(t, run) for t in (query, key, value))
    mask = None
    if window is not None and run.length > window:
        at = torch.arange(run.length, device=query.device)
        mask = (at[:, None] - at[None, :]).abs() < window
    out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).reshape(1, -1, *out.shape[1::2])


def _serves(dtype: torch.dtype, window: int | None) -> bool:
    """Whether one call for all lengths does it: in float32 there is none with a window."""
    return dtype != torch.float32 or window is None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """torch's attention over lengths that differ: CUDA.

    In half precision in one split, so that a sequence's bits do not depend on its neighbours. In
    float32 what scaled_dot_product_attention runs for equal lengths: a block of it reads one
    sequence alone.
    """
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if query.dtype == torch.float32:
        more = ends, ends, longest, longest, 0.0, 0
        return efficient_attention(q, k, v, None, *more, scale=scale)[0]  # type: ignore[no-any-return]
    from torch.nn.attention.varlen import varlen_attn  # half a second, where it is not needed

    reach = -1 if window is None else window - 1
    out = varlen_attn(
        q[0],
        k[0],
        v[0],
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(reach, reach),
        num_splits=1,
    )
    return out.unsqueeze(0)  # type: ignore[union-attr]


def varlen_why_not(heads: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why one call for all lengths cannot serve, in words; None where it gives what the runs give.

    heads: how many, and how wide. Tried once at start, on a GPU: a card or a driver that does
    otherwise costs speed and not answers.
    """
    try:
        off = _varlen_off(heads, device, dtype)
    except Exception as error:  # whatever a driver raises
        return f"varlen attention does not run here ({first_line(error)}), {RUNS_SERVE}"
    if off <= TOLERANCE[dtype]:
        return None
    return f"varlen attention is off by {off:.1e} here, {RUNS_SERVE}"


@torch.inference_mode()
def _varlen_off(heads: tuple[int, int], device: torch.device, dtype: torch.dtype) -> float:
    """How far varlen_attn is from the runs over drawn sequences."""
    lengths = (1, 7, 7, 150)
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, sum(lengths), *heads, generator=rng).to(device, dtype).transpose(1, 2)
        for _ in range(3)
    )
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    worst = 0.0
    for window in (None, 65):
        if not _serves(dtype, window):
            continue
        runs = [_of_run(run, q, k, v, None, window) for run in runs_of(lengths)]
        by_runs = torch.cat(runs, 1)
        at_once = _varlen(q, k, v, ends, max(lengths), None, window)
        off = float((at_once - by_runs).abs().max())
        worst = max(worst, math.inf if math.isnan(off) else off)
    return worst


def _sequences(t: Tensor, run: Run) -> Tensor:
    """[1, heads, T, d] -> the run's sequences [count, heads, length, d], without a copy."""
    _, heads, rows, width = t.shape
    if run.length == rows:
        return t
    return t[0, :, run.rows].view(heads, run.count, run.length, width).transpose(0, 1)
