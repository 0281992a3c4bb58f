"""Pooling and heads: last hidden states -> each sequence's embedding, logits or token states.

Knows rows and matrices; the pooler, which adapters may change, is handed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.adapters.sentence import Pooling
from app.adapters.values import Dense, Head, Scores
from app.model.batch import Batch
from app.model.machine import to_device
from app.model.sequence import Sequence, Want

# As transformers has them.
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
Pooler = Callable[[Tensor, list[Sequence]], Tensor]


def answers(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> list[Tensor]:
    """hidden [T, H] -> each packed sequence's embedding [H or dimensions], logits, or the states
    [n, H] of its n tokens: float32, CPU.

    Logits are [L], or [n, L] where the head labels every token. As many calls for one sequence as
    for a thousand; an embedding's bits do not depend on its neighbours.
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


@dataclass(frozen=True, eq=False)
class _Poolers:
    """The pooler's output [n, H], and which of its rows is a packed sequence's."""

    rows: Tensor
    place: dict[int, int]


def _logits(hidden: Tensor, batch: Batch, members: list[int], poolers: _Poolers) -> _Group:
    head = batch.sequences[members[0]].head
    if head is None:  # pragma: no cover - the door refuses this
        raise ValueError("an adapter without a head gives no logits")
    if head.source == "tokens":
        states, counts = _all_rows(hidden, batch, members)
        return _Group(members, apply_head(states, head).float(), counts)
    states = _pooled(hidden, batch, members, head.source, poolers).to(hidden.dtype)
    return _Group(members, apply_head(states, head).float())


def _token_states(hidden: Tensor, batch: Batch, members: list[int]) -> _Group:
    states, counts = _all_rows(hidden, batch, members)
    return _Group(members, states.float(), counts)


def _embeddings(
    hidden: Tensor, batch: Batch, want: Want, members: list[int], poolers: _Poolers
) -> _Group:
    """Those that are pooled alike."""
    return _Group(members, _embedding(_pooled(hidden, batch, members, want.pooling, poolers), want))


def _all_rows(hidden: Tensor, batch: Batch, members: list[int]) -> tuple[Tensor, list[int]]:
    """The members' rows one after another, and how many each has."""
    starts, lengths = np.array(batch.starts)[members], np.array(batch.lengths)[members]
    return hidden[_on(_places(starts, lengths), hidden)], lengths.tolist()


def _pooled(
    hidden: Tensor, batch: Batch, members: list[int], pooling: Pooling, poolers: _Poolers
) -> Tensor:
    """[members, H]"""
    if pooling == "pooler":
        return poolers.rows[_on(np.array([poolers.place[i] for i in members]), hidden)]
    return pool(hidden, np.array(batch.starts)[members], np.array(batch.lengths)[members], pooling)


def pool(hidden: Tensor, starts: np.ndarray, lengths: np.ndarray, pooling: Pooling) -> Tensor:
    """hidden [T, H], where sequences begin and how many rows they have -> float32 [sequences, H].

    A sequence's rows are added in their order, whatever stands beside it.
    Raises ValueError for the pooler, which is a layer.
    """
    match pooling:
        case "mean" | "max":
            rows, ends = _places(starts, lengths), np.cumsum(lengths)
            both = _on(np.concatenate([rows, ends - lengths]), hidden)
            return F.embedding_bag(
                both[: len(rows)], hidden.float(), both[len(rows) :], mode=pooling
            )
        case "last":
            return hidden[_on(starts + lengths - 1, hidden)].float()
        case "cls":
            return hidden[_on(starts, hidden)].float()
        case "pooler":
            raise ValueError("the pooler's output comes from the pooler")
        case _:
            assert_never(pooling)


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of all rows of these sequences."""
    ends = np.cumsum(lengths)
    shifts: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    return shifts + np.arange(len(shifts))


def _on(numbers: np.ndarray, hidden: Tensor) -> Tensor:
    return to_device(torch.from_numpy(numbers), hidden.device)


def apply_head(rows: Tensor, head: Head) -> Tensor:
    """rows [S, H] -> logits [S, L]."""
    if head.dense is not None:
        rows = _dense(rows, head.dense)
    if head.activation is not None:
        rows = activation(head.activation)(rows)
    if head.norm is not None:
        rows = F.layer_norm(rows, rows.shape[-1:], head.norm.weight, head.norm.bias, head.norm_eps)
    return _dense(rows, head.out)


@cache
def activation(name: str) -> Callable[[Tensor], Tensor]:
    """By transformers' name for it; without transformers' imports where torch has it. Raises
    KeyError.
    """
    if name in TORCHS:
        return TORCHS[name]
    from transformers.activations import ACT2FN

    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function


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


def _pooler_rows(hidden: Tensor, batch: Batch, pooler: Pooler | None) -> _Poolers:
    """Of each sequence that reads it, through its own version."""
    readers = [i for i, sequence in enumerate(batch.sequences) if _reads_pooler(sequence)]
    if not readers or pooler is None:
        return _Poolers(hidden[:0], {})
    first = hidden[_on(np.array(batch.starts)[readers], hidden)]
    rows = pooler(first, [batch.sequences[i] for i in readers])
    return _Poolers(rows, {i: place for place, i in enumerate(readers)})


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
