"""Whose turn it is: a tree of lines (priority, adapter, client) that share by tokens at each fork.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a line's next turn starts, in virtual time, where
its last one ended, and never before the turn that is being served. So a flood waits behind its own
tokens, and a line that was idle is next. Knows tokens and lines; knows no threads, tensors or HTTP.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")
LineKey = tuple[Hashable, ...]
REMEMBERED = 4096  # lines at one fork; beyond, idle ones whose last turn is over are forgotten


@dataclass(eq=False)
class _Line(Generic[T]):
    """One line of its fork, and a fork for the lines below it; only the lowest have entries.

    end: where its last turn ended, in its fork's virtual time. heap: the lines that wait, by start.
    now: where the turn that is being served starts. batch: the batch that `now` is of.
    """

    end: float = 0.0
    entries: deque[tuple[int, T]] = field(default_factory=deque)
    lines: dict[Hashable, _Line[T]] = field(default_factory=dict)
    heap: list[tuple[float, int, Hashable]] = field(default_factory=list)
    now: float = 0.0
    batch: int = 0

    @property
    def waits(self) -> bool:
        """Whether anything waits in it or below it."""
        return bool(self.entries or self.heap)


class Turns(Generic[T]):
    """Whatever waits, each of some tokens. Not thread-safe: the queue's lock is around it."""

    def __init__(self, cost: Mapping[Hashable, float]) -> None:
        """cost: what a token of a top line counts for; where it is not in there, 1."""
        self._cost = cost
        self._root: _Line[T] = _Line()
        self._order = count()
        self._batch = 0

    def __bool__(self) -> bool:
        return self._root.waits

    def add(self, path: LineKey, tokens: int, entry: T) -> None:
        """Put an entry at the end of its line."""
        fork = self._root
        for key in path:
            line = fork.lines.setdefault(key, _Line())
            if not line.waits:
                start = max(fork.now, line.end)
                heapq.heappush(fork.heap, (start, next(self._order), key))
            fork = line
        fork.entries.append((tokens, entry))

    def begin(self) -> None:
        """Begin a batch of pops: its first turn is the one that is being served."""
        self._batch += 1

    def peek(self) -> tuple[LineKey, int, T]:
        """The line, tokens and entry whose turn it is. Raises IndexError where nothing waits."""
        path, line = [], self._root
        while line.heap:
            key = line.heap[0][2]
            path.append(key)
            line = line.lines[key]
        tokens, entry = line.entries[0]
        return tuple(path), tokens, entry

    def pop(self, *, free: bool = False) -> None:
        """Remove the entry whose turn it is. free: it does not count as its line's turn."""
        path, tokens, _ = self.peek()
        cost = 0.0 if free else tokens * self._cost.get(path[0], 1.0)
        self._take(self._root, path, cost)

    def _take(self, fork: _Line[T], path: LineKey, cost: float) -> None:
        if not path:
            fork.entries.popleft()
            return
        key, start = path[0], fork.heap[0][0]
        line = fork.lines[key]
        self._take(line, path[1:], cost)
        if cost and fork.batch != self._batch:
            fork.batch, fork.now = self._batch, max(fork.now, start)
        line.end = start + cost
        if line.waits:
            heapq.heapreplace(fork.heap, (line.end, next(self._order), key))
        else:
            heapq.heappop(fork.heap)
            if len(fork.lines) > REMEMBERED:
                alive = {k: x for k, x in fork.lines.items() if x.waits or x.end > fork.now}
                fork.lines = alive

    def ahead_of(self, path: LineKey) -> bool:
        """Whether the next entry's turn comes before the end of the last turn of `path`."""
        fork = self._root
        for key in path:
            if not fork.heap or key not in fork.lines:
                return False
            start, _, following = fork.heap[0]
            if following != key:
                return start < fork.lines[key].end
            fork = fork.lines[key]
        return False
