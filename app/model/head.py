"""Pooling and heads: last hidden states -> each sequence's embedding, logits or token states.

Knows rows and matrices; the pooler, which adapters may change, is handed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from app.adapters.sentence import Pooling
from app.adapters.values import Dense, Head, Scores
from app.model.batch import Batch
from app.model.machine import to_device
from app.model.sequence import Sequence, Want

Pooler = Callable[[Tensor, list[Sequence]], Tensor]


def answers(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> list[Tensor]:
    """hidden [T, H] -> each packed sequence's embedding [H or dimensions], logits, or the states
    [n, H] of its n tokens: float32, CPU.

    Logits are [L], or [n, L] where the head labels every token. On the CPU each embedding is
    computed on its own, so that its bits do not depend on its neighbours.
    Raises ValueError for logits through a version without a head.
    """
    poolers = _pooler_rows(hidden, batch, pooler)
    wants: dict[Want, list[int]] = {}
    heads: dict[int, list[int]] = {}
    tokens: list[int] = []
    for i, sequence in enumerate(batch.sequences):
        match sequence.want.kind:
            case "logits":
                heads.setdefault(id(sequence.head), []).append(i)
            case "embedding":
                wants.setdefault(sequence.want, []).append(i)
            case "states":
                tokens.append(i)
            case _:
                assert_never(sequence.want.kind)
    groups = [
        *(_embeddings(hidden, batch, want, members, poolers) for want, members in wants.items()),
        *(_logits(hidden, batch, members, poolers) for members in heads.values()),
        *([_token_states(hidden, batch, tokens)] if tokens else []),
    ]
    together = torch.cat([group.values.flatten() for group in groups]).cpu()  # from a GPU at once
    parts = torch.split(together, [group.values.numel() for group in groups])
    results: list[Tensor | None] = [None] * len(batch.sequences)
    for group, part in zip(groups, parts, strict=True):
        for i, row in zip(group.members, group.rows(part), strict=True):
            results[i] = row
    return [row for row in results if row is not None]


@dataclass(frozen=True, eq=False)
class _Group:
    """Answers of one shape. values: float32 [sum of counts, L], or [members, L] without counts."""

    members: list[int]
    values: Tensor
    counts: list[int] | None = None

    def rows(self, copied: Tensor) -> Iterable[Tensor]:
        """Each member's own, from values' flat copy."""
        values = copied.view(self.values.shape)
        return values.unbind() if self.counts is None else torch.split(values, self.counts)


def _logits(hidden: Tensor, batch: Batch, members: list[int], poolers: dict[int, Tensor]) -> _Group:
    head = batch.sequences[members[0]].head
    if head is None:  # pragma: no cover - the door refuses this
        raise ValueError("an adapter without a head gives no logits")
    states = [_states(hidden, batch, i, head, poolers) for i in members]
    counts = [len(s) for s in states] if head.source == "tokens" else None
    return _Group(members, apply_head(torch.cat(states), head).float(), counts)


def _token_states(hidden: Tensor, batch: Batch, members: list[int]) -> _Group:
    states = [hidden[batch.starts[i] : batch.starts[i] + batch.lengths[i]] for i in members]
    return _Group(members, torch.cat(states).float(), [len(s) for s in states])


def _embeddings(
    hidden: Tensor, batch: Batch, want: Want, members: list[int], poolers: dict[int, Tensor]
) -> _Group:
    """Those that are pooled alike; on a GPU in a few launches: one of each text would starve it."""
    if hidden.device.type == "cuda":
        if want.pooling == "pooler":
            pooled = torch.stack([poolers[i] for i in members])
        else:
            pooled = pool_all(hidden, batch.starts, batch.lengths, members, want.pooling)
        return _Group(members, _embedding(pooled, want))
    rows = []
    for i in members:
        states = hidden[batch.starts[i] : batch.starts[i] + batch.lengths[i]]
        row = poolers[i] if want.pooling == "pooler" else pool(states, want.pooling)
        rows.append(_embedding(row, want))
    return _Group(members, torch.stack(rows))


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


def pool_all(
    hidden: Tensor, starts: list[int], lengths: list[int], members: list[int], pooling: Pooling
) -> Tensor:
    """hidden [T, H] of all sequences -> float32 [members, H]: pool's twin for many at once.

    Each element is summed by one thread over its own sequence's rows, in their order.
    """
    places = torch.tensor([starts, lengths, [*members, *[0] * (len(starts) - len(members))]])
    first, sizes, chosen = to_device(places, hidden.device)
    chosen = chosen[: len(members)]
    match pooling:
        case "mean" | "max":
            rows = hidden.float()
            return torch.segment_reduce(rows, pooling, lengths=sizes, unsafe=True)[chosen]
        case "last":
            return hidden[(first + sizes - 1)[chosen]].float()
        case "cls":
            return hidden[first[chosen]].float()
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


def _embedding(rows: Tensor, want: Want) -> Tensor:
    """[..., H] cut to want.dimensions, then to length 1 (Kusupati et al. 2022, matryoshka)."""
    rows = rows.float()[..., : want.dimensions]
    return F.normalize(rows, dim=-1) if want.normalize else rows


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
