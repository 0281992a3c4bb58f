"""Sequences of many adapters packed end to end: who sits where.

The base's sequences come first, then each version's as one segment; versions with layers of their
own come last. Within a segment sequences stand by length, so that equal lengths run together. Knows
lengths and layers; computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

from app.model.delta import BASE_LAYERS, Layers
from app.model.kernel_attention import LONGEST
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


@dataclass(frozen=True)
class Bucket:
    """A shape that batches are padded to, so that one captured forward serves them all.

    tokens: how many rows it has. A batch of at most so many tokens fits where it has at most
    `sequences` sequences, none of more tokens than `longest`. spare: sequences that the padding is
    cut into; attention takes the square of a sequence's length.
    """

    tokens: int
    sequences: int
    longest: int
    spare: int = 1

    def holds(self, lengths: list[int]) -> bool:
        """Whether sequences of these lengths fit."""
        return (
            len(lengths) <= self.sequences
            and sum(lengths) <= self.tokens
            and max(lengths) <= self.longest
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the model reads. input_ids, token_type_ids, position_ids: int64 [1, rows].

    ends: int32, 0 and then where each sequence ends, for attention that takes all lengths at once;
    longest: none has more tokens. runs: the same by length; a captured forward has none, since it
    serves batches of other lengths.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    ends: Tensor | None
    longest: int
    runs: list[Run]

    @cached_property
    def short(self) -> np.ndarray:
        """First row and past the last [S, 2], int64, of each sequence that one call attends to on a
        CPU, whatever its length; long has the runs of the others.
        """
        short = [run for run in self.runs if run.length <= LONGEST]
        rows = [
            (start, start + run.length)
            for run in short
            for start in range(run.rows.start, run.rows.stop, run.length)
        ]
        return np.array(rows, np.int64).reshape(-1, 2)

    @cached_property
    def long(self) -> list[Run]:
        """See short."""
        return [run for run in self.runs if run.length > LONGEST]


_none = torch.empty(1, 0, dtype=torch.int64)
NOTHING = Inputs(_none, _none, _none, None, 0, [])


@dataclass(frozen=True, eq=False)
class Batch:
    """sequences[i], starts[i] and lengths[i] belong to the i-th packed sequence; order[i] is its
    place in what pack() was given. segments: over all rows. runs: the T rows by length.

    numbers: int64 [3, T or bucket.tokens]: ids, types, and positions, in each sequence from `first`
    on. bucket: what it is padded to. The rows after T are zeros: sequences of their own and one
    more segment, of the base. Nothing reads what becomes of them.
    """

    sequences: list[Sequence]
    order: list[int]
    starts: list[int]
    lengths: list[int]
    segments: list[Segment]
    runs: list[Run]
    numbers: np.ndarray
    bucket: Bucket | None

    @property
    def tokens(self) -> int:
        """T, the sum of the lengths."""
        return self.starts[-1] + self.lengths[-1]

    def ends(self) -> list[int]:
        """0, then where each sequence ends; in a bucket as many as fit in it, and the padding's."""
        ends, bucket = [*self.starts, self.tokens], self.bucket
        if bucket is not None:
            left = bucket.sequences + bucket.spare - len(self.starts)
            padding = bucket.tokens - self.tokens
            ends += [self.tokens + padding * (i + 1) // left for i in range(left)]
        return ends

    def inputs(self, device: torch.device, at_once: bool) -> Inputs:
        """On the device. at_once: with ends."""
        rows = to_device(torch.from_numpy(self.numbers), device)
        ends = None
        if at_once:
            ends = to_device(torch.tensor(self.ends(), dtype=torch.int32), device)
        longest = max(self.lengths) if self.bucket is None else self.bucket.longest
        return Inputs(rows[0:1], rows[1:2], rows[2:3], ends, longest, self.runs)


def pack(
    sequences: list[Sequence],
    padding: int | None = None,
    buckets: Iterable[Bucket] = (),
    first: int = 0,
) -> Batch:
    """Pack sequences of any length and version; T = the sum of their lengths.

    padding: RoBERTa's padding id, which takes no position where it stands in a text. buckets: the
    first that holds them is what they are padded to. first: the position of a sequence's first
    token.
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
    bucket = next((b for b in buckets if b.holds(lengths)), None)
    numbers = np.zeros((3, bucket.tokens if bucket else total), np.int64)
    rows = numbers[:, :total]  # not lists: they took half of a GPU's forward
    rows[0] = np.fromiter(chain.from_iterable(s.ids for s in packed), np.int64, total)
    if any(any(s.types) for s in packed):
        rows[1] = np.fromiter(chain.from_iterable(s.types for s in packed), np.int64, total)
    rows[2] = np.arange(total) - np.repeat(starts, lengths)
    if padding is not None and (rows[0] == padding).any():
        rows[2] = [p for sequence in packed for p in _positions(sequence.ids, padding)]
    rows[2] += first
    joined = segments(packed, lengths)
    if total < numbers.shape[1]:
        own = joined[-1].layers.own  # then the base need not compute these rows either
        joined.append(
            Segment(slice(total, numbers.shape[1]), joined[-1].layers if own else BASE_LAYERS)
        )
    return Batch(packed, order, starts, lengths, joined, runs_of(lengths), numbers, bucket)


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
    pairs = zip(sequences, widths, strict=True)
    for layers, neighbours in groupby(pairs, lambda pair: pair[0].layers):
        start, end = end, end + sum(width for _, width in neighbours)
        joined.append(Segment(slice(start, end), layers))
    return joined


def runs_of(lengths: Iterable[int]) -> list[Run]:
    """Neighbours of equal length joined."""
    runs: list[Run] = []
    end = 0
    for length, neighbours in groupby(lengths):
        count = len(list(neighbours))
        start, end = end, end + count * length
        runs.append(Run(slice(start, end), count, length))
    return runs
