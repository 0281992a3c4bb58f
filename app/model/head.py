"""Pooling and heads: last hidden states -> each sequence's embedding, logits or token states.

Knows rows and matrices; the pooler, which adapters may change, is handed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from app.adapters.sentence import Pooling
from app.adapters.values import Dense, Head, Scores
from app.model.batch import Batch
from app.model.sequence import Sequence, Want

Pooler = Callable[[Tensor, list[Sequence]], Tensor]


def answers(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> list[Tensor]:
    """hidden [T, H] -> each packed sequence's embedding [H or dimensions], logits, or the states
    [n, H] of its n tokens: float32, CPU.

    Logits are [L], or [n, L] where the head labels every token. Each embedding is computed on its
    own, so that its bits do not depend on its neighbours.
    Raises ValueError for logits through a version without a head.
    """
    poolers = _pooler_rows(hidden, batch, pooler)
    results: list[Tensor | None] = [None] * len(batch.sequences)
    logits: dict[int, list[int]] = {}
    for i, sequence in enumerate(batch.sequences):
        want = sequence.want
        rows = hidden[batch.starts[i] : batch.starts[i] + batch.lengths[i]]
        match want.kind:
            case "logits":
                logits.setdefault(id(sequence.head), []).append(i)
            case "states":
                results[i] = rows
            case "embedding":
                row = poolers[i] if want.pooling == "pooler" else pool(rows, want.pooling)
                results[i] = _embedding(row, want)
            case _:
                assert_never(want.kind)
    for members in logits.values():
        head = batch.sequences[members[0]].head
        if head is None:  # pragma: no cover - the door refuses this
            raise ValueError("an adapter without a head gives no logits")
        states = [_states(hidden, batch, i, head, poolers) for i in members]
        rows_of = [len(s) for s in states]
        split = torch.split(apply_head(torch.cat(states), head), rows_of)
        for i, row in zip(members, split, strict=True):
            results[i] = row if head.source == "tokens" else row[0]
    outputs = [row.float() for row in results if row is not None]
    together = torch.cat([row.flatten() for row in outputs]).cpu()  # one copy from the device
    parts = torch.split(together, [row.numel() for row in outputs])
    return [part.view(row.shape) for part, row in zip(parts, outputs, strict=True)]


def _states(hidden: Tensor, batch: Batch, i: int, head: Head, poolers: dict[int, Tensor]) -> Tensor:
    """The i-th sequence's states that the head reads: [1, H]; [n, H] where it labels tokens."""
    rows = hidden[batch.starts[i] : batch.starts[i] + batch.lengths[i]]
    match head.source:
        case "pooler":
            return poolers[i][None]
        case "tokens":
            return rows
        case "mean":
            return rows.mean(0, keepdim=True)
        case "cls":
            return rows[:1]
        case _:
            assert_never(head.source)


def pool(rows: Tensor, pooling: Pooling) -> Tensor:
    """rows [n, H] of one sequence -> [H]. Raises ValueError for the pooler, which is a layer."""
    match pooling:
        case "mean":
            return rows.mean(0)
        case "max":
            return rows.amax(0)
        case "last":
            return rows[-1]
        case "cls":
            return rows[0]
        case "pooler":
            raise ValueError("the pooler's output comes from the pooler")
        case _:
            assert_never(pooling)


def apply_head(rows: Tensor, head: Head) -> Tensor:
    """rows [S, H] -> logits [S, L]."""
    if head.dense is not None:
        rows = _dense(rows, head.dense)
    if head.activation is not None:
        rows = ACT2FN[head.activation](rows)
    if head.norm is not None:
        rows = F.layer_norm(rows, rows.shape[-1:], head.norm.weight, head.norm.bias, head.norm_eps)
    return _dense(rows, head.out)


def scores(logits: Tensor, kind: Scores) -> Tensor:
    """logits [L] -> scores [L]: softmax, sigmoid for multi-label; for regression the logits."""
    match kind:
        case "softmax":
            return logits.softmax(-1)
        case "sigmoid":
            return logits.sigmoid()
        case "none":
            return logits
        case _:
            assert_never(kind)


def _dense(x: Tensor, layer: Dense) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _embedding(row: Tensor, want: Want) -> Tensor:
    """Cut to want.dimensions, then to length 1 (Kusupati et al. 2022, matryoshka)."""
    row = row.float()[: want.dimensions]
    return F.normalize(row, dim=0) if want.normalize else row


def _pooler_rows(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> dict[int, Tensor]:
    """The pooler's output [H] for each sequence that reads it, through its own version."""
    readers = [i for i, sequence in enumerate(batch.sequences) if _reads_pooler(sequence)]
    if not readers or pooler is None:
        return {}
    first = hidden[[batch.starts[i] for i in readers]]
    return dict(
        zip(readers, pooler(first, [batch.sequences[i] for i in readers]).unbind(), strict=True)
    )


def _reads_pooler(sequence: Sequence) -> bool:
    match sequence.want.kind:
        case "embedding":
            return sequence.want.pooling == "pooler"
        case "logits":
            return sequence.head is not None and sequence.head.source == "pooler"
        case "states":
            return False
        case _:
            assert_never(sequence.want.kind)
