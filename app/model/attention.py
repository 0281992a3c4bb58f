"""Attention over packed sequences, in the shape that transformers' attention interface asks for.

Knows runs of equal length; nothing of adapters. Each sequence attends to itself alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from app.model.batch import Run

NAME = "bert_lora_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    runs: list[Run],
    **_: Any,
) -> tuple[Tensor, None]:
    """One scaled_dot_product_attention per run of equal lengths.

    query, key, value [1, heads, T, d] -> [1, T, heads, d]. sliding_window: transformers' flash
    convention, one more than the largest distance that is attended to (ModernBERT's local layers).
    """
    outs = []
    for run in runs:
        q, k, v = (_sequences(t, run) for t in (query, key, value))
        mask = None
        if sliding_window is not None and run.length > sliding_window:
            at = torch.arange(run.length, device=query.device)
            mask = (at[:, None] - at[None, :]).abs() < sliding_window
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).unsqueeze(0), None


def _sequences(t: Tensor, run: Run) -> Tensor:
    """[1, heads, T, d] -> the run's sequences [count, heads, length, d], without a copy."""
    heads, _, width = t.shape[1:]
    return t[0, :, run.rows].view(heads, run.count, run.length, width).transpose(0, 1)


def register() -> None:
    """Make the function known to transformers under NAME, with no mask: runs say who sees whom."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda **_: None)
