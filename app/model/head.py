"""Pooling and heads: last hidden states -> each sequence's embedding or logits.

Knows rows and matrices; the pooler, which adapters may change, is handed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.adapters.adapter import Dense, Head, Pooling, Scores
from app.model.batch import Batch, Item

Pooler = Callable[[Tensor, list[Item]], Tensor]
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    None: lambda x: x,
}


def answers(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> list[Tensor]:
    """hidden [T, H] -> per packed sequence an embedding [H or dimensions] or logits [L], fp32, CPU.

    Each embedding is computed on its own, so that its bits do not depend on its neighbours.
    """
    poolers = _pooler_rows(hidden, batch, pooler)
    results: list[Tensor | None] = [None] * len(batch.items)
    logits: dict[int, list[int]] = {}
    for i, item in enumerate(batch.items):
        if item.want.kind == "logits":
            logits.setdefault(id(item.head), []).append(i)
            continue
        pooling = item.want.pooling
        start = batch.starts[i]
        rows = hidden[start : start + batch.lengths[i]]
        results[i] = _embedding(poolers[i] if pooling == "pooler" else pool(rows, pooling), item)
    for members in logits.values():
        head = batch.items[members[0]].head
        if head is None:  # pragma: no cover - the door refuses this
            raise ValueError("logits were asked of an adapter without a head")
        rows = torch.stack(
            [poolers[i] if head.source == "pooler" else hidden[batch.starts[i]] for i in members]
        )
        for i, row in zip(members, apply_head(rows, head).unbind(), strict=True):
            results[i] = row
    rows_found = [row.float() for row in results if row is not None]
    together = torch.cat(rows_found).cpu()  # one copy from the device, not one each
    return list(torch.split(together, [len(row) for row in rows_found]))


def pool(rows: Tensor, pooling: Pooling) -> Tensor:
    """rows [n, H] of one sequence -> [H]."""
    if pooling == "mean":
        return rows.mean(0)
    if pooling == "max":
        return rows.amax(0)
    return rows[-1] if pooling == "last" else rows[0]


def apply_head(rows: Tensor, head: Head) -> Tensor:
    """rows [S, H] -> logits [S, L]."""
    if head.dense is not None:
        rows = ACTIVATIONS[head.activation](_dense(rows, head.dense))
    return _dense(rows, head.out)


def scores(logits: Tensor, kind: Scores) -> Tensor:
    """logits [L] -> [L]: softmax, sigmoid for multi-label, as they are for regression."""
    if kind == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if kind == "sigmoid" else logits


def _dense(x: Tensor, layer: Dense) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _embedding(row: Tensor, item: Item) -> Tensor:
    """Cut to the dimensions asked for, then to length 1 (Kusupati et al. 2022, matryoshka)."""
    row = row.float()[: item.want.dimensions]
    return F.normalize(row, dim=0) if item.want.normalize else row


def _pooler_rows(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> dict[int, Tensor]:
    """The base's pooler's output [H] for each sequence that asks for it, through its own adapter."""
    asking = [
        i
        for i, item in enumerate(batch.items)
        if (item.want.kind == "embedding" and item.want.pooling == "pooler")
        or (item.want.kind == "logits" and item.head is not None and item.head.source == "pooler")
    ]
    if not asking or pooler is None:
        return {}
    first = hidden[[batch.starts[i] for i in asking]]
    return dict(zip(asking, pooler(first, [batch.items[i] for i in asking]).unbind(), strict=True))
