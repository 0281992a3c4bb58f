"""Sequences of many adapters packed end to end: who sits where.

The base's sequences come first, then each version's as one segment; versions with layers of their
own come last. Within a segment sequences stand by length, so that equal lengths run together. Knows
lengths and layers; computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from app.model.delta import BASE_LAYERS, Layers
from app.model.machine import to_device
from app.model.sequence import Sequence


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
    """input_ids, token_type_ids, position_ids: int64 [1, T]; positions restart at 0 per sequence.

    sequences[i], starts[i] and lengths[i] belong to the i-th packed sequence; order[i] is its place
    in what pack() was given. segments: over the T rows. runs: the same rows by length.
    """

    sequences: list[Sequence]
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


def pack(sequences: list[Sequence], device: torch.device, padding: int | None = None) -> Batch:
    """Pack sequences of any length and version; T = the sum of their lengths.

    padding: RoBERTa's padding id, which takes no position where it stands in a text.
    """
    place = {BASE_LAYERS: 0}
    for sequence in sequences:
        place.setdefault(sequence.layers, len(place))

    def key(i: int) -> tuple[bool, int, int]:
        layers = sequences[i].layers
        return (bool(layers.own), place[layers], len(sequences[i].ids))

    order = sorted(range(len(sequences)), key=key)
    packed = [sequences[i] for i in order]
    lengths = [len(sequence.ids) for sequence in packed]
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)

    total = starts[-1] + lengths[-1]
    numbers = np.empty((3, total), np.int64)  # not lists: they took half of a GPU's forward
    numbers[0] = np.fromiter(chain.from_iterable(s.ids for s in packed), np.int64, total)
    numbers[1] = np.fromiter(chain.from_iterable(s.types for s in packed), np.int64, total)
    numbers[2] = np.arange(total) - np.repeat(starts, lengths)
    if padding is not None and (numbers[0] == padding).any():
        numbers[2] = [p for sequence in packed for p in _positions(sequence.ids, padding)]
    rows = to_device(torch.from_numpy(numbers), device)
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


def _positions(ids: list[int], padding: int) -> list[int]:
    """0, 1, 2, …; -1 for the padding id, and the others counted without.

    Source: transformers' create_position_ids_from_input_ids.
    """
    positions, following = [], 0
    for token in ids:
        positions.append(-1 if token == padding else following)
        following += token != padding
    return positions


def segments(sequences: Iterable[Sequence], widths: Iterable[int]) -> list[Segment]:
    """Neighbours of the same layers joined; the i-th sequence takes widths[i] rows."""
    joined: list[Segment] = []
    end = 0
    for sequence, width in zip(sequences, widths, strict=True):
        start, end = end, end + width
        last = joined[-1] if joined else None
        if last is not None and last.layers is sequence.layers:
            start = last.rows.start
            joined.pop()
        joined.append(Segment(slice(start, end), sequence.layers))
    return joined


def runs_of(lengths: Iterable[int]) -> list[Run]:
    """Neighbours of equal length joined."""
    runs: list[Run] = []
    end = 0
    for length in lengths:
        start, end = end, end + length
        if runs and runs[-1].length == length:
            last = runs.pop()
            runs.append(Run(slice(last.rows.start, end), last.count + 1, length))
        else:
            runs.append(Run(slice(start, end), 1, length))
    return runs
