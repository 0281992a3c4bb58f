"""Sequences of many adapters packed end to end: who sits where.

Knows lengths and adapters; computes nothing. Order: the base's sequences first, then each adapter's
as one segment, those with layers of their own last; within a segment by length, so that equal lengths run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.adapters.config.sentence import Pooling
from app.adapters.values import Head
from app.model.delta import BASE_LAYERS, Layers
from app.model.machine import to_device

Wanted = Literal["embedding", "logits"]


@dataclass(frozen=True)
class Want:
    """What one sequence is to give: a pooled embedding [H or dimensions], or its head's logits.

    Logits are [L], or [n, L] where the head labels each of n tokens.
    """

    kind: Wanted
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """One sequence to run, through its adapter's layers and head."""

    ids: Sequence[int]
    types: Sequence[int]
    want: Want
    layers: Layers = BASE_LAYERS
    head: Head | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring rows that run through the same layers."""

    rows: slice
    layers: Layers


@dataclass(frozen=True)
class Run:
    """`count` neighbouring sequences of equal length: one attention call."""

    rows: slice
    count: int
    length: int


@dataclass(frozen=True, eq=False)
class Batch:
    """input_ids, token_type_ids, position_ids [1, T] (positions restart at 0 per sequence).

    items[i], starts[i] and lengths[i] belong to the i-th packed sequence; order[i] is its place
    in what pack() was given. segments: over T rows.
    """

    items: list[Item]
    order: list[int]
    starts: list[int]
    lengths: list[int]
    segments: list[Segment]
    runs: list[Run]
    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor

    def ends(self) -> Tensor:
        """[sequences + 1] int32 on the device: 0, then where each packed sequence ends."""
        ends = [*self.starts, self.starts[-1] + self.lengths[-1]]
        return to_device(torch.tensor(ends, dtype=torch.int32), self.input_ids.device)


def pack(items: Sequence[Item], device: torch.device, padding: int | None = None) -> Batch:
    """Pack sequences of any length and adapter; T = the sum of their lengths.

    padding: RoBERTa's padding id, which takes no position where it stands in a text.
    """
    place = {BASE_LAYERS: 0}
    for item in items:
        place.setdefault(item.layers, len(place))

    def key(i: int) -> tuple[bool, int, int]:
        item = items[i]
        return (bool(item.layers.own), place[item.layers], len(item.ids))

    order = sorted(range(len(items)), key=key)
    packed = [items[i] for i in order]
    lengths = [len(item.ids) for item in packed]
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)

    ids = [i for item in packed for i in item.ids]
    types = [t for item in packed for t in item.types]
    positions = [p for item in packed for p in _positions(item.ids, padding)]
    rows = to_device(torch.tensor([ids, types, positions], dtype=torch.long), device)
    return Batch(
        packed,
        order,
        starts,
        lengths,
        segments(packed, lengths),
        runs_of(lengths),
        rows[0:1],
        rows[1:2],
        rows[2:3],
    )


def _positions(ids: Sequence[int], padding: int | None) -> list[int]:
    """0, 1, 2, …; with a padding id -1 for it, and the others counted without.

    Source: transformers' create_position_ids_from_input_ids.
    """
    if padding is None or padding not in ids:
        return list(range(len(ids)))
    places, at = [], 0
    for token in ids:
        places.append(-1 if token == padding else at)
        at += token != padding
    return places


def segments(items: Sequence[Item], widths: Sequence[int]) -> list[Segment]:
    """Neighbours of one adapter joined; the i-th item takes widths[i] rows."""
    found: list[Segment] = []
    end = 0
    for item, width in zip(items, widths, strict=True):
        start, end = end, end + width
        last = found[-1] if found else None
        if last is not None and last.layers is item.layers:
            start = last.rows.start
            found.pop()
        found.append(Segment(slice(start, end), item.layers))
    return found


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """Neighbours of equal length joined."""
    found: list[Run] = []
    end = 0
    for length in lengths:
        start, end = end, end + length
        if found and found[-1].length == length:
            last = found.pop()
            found.append(Run(slice(last.rows.start, end), last.count + 1, length))
        else:
            found.append(Run(slice(start, end), 1, length))
    return found
