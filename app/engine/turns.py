"""Whose turn it is: a tree of lines (priority, adapter, client) that share by tokens at each fork.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a line's next turn starts, in virtual time, where its
last one ended, and never before the turn that is being served; so a flood waits behind its own
tokens, and who was idle is next. Knows tokens and lines; knows no threads, tensors or HTTP.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")
Path = tuple[Hashable, ...]
REMEMBERED = 4096  # lines at one fork; beyond, idle ones whose last turn is over are forgotten


@dataclass(eq=False)
class _Line(Generic[T]):
    """One line of its fork, and a fork for the lines below it; only the lowest hold things.

    end: where its last turn ended, in its fork's virtual time. heap: the lines that wait, by start.
    now: where the turn that is being served starts; batch: the batch in which that was set.
    """

    end: float = 0.0
    things: deque[tuple[int, T]] = field(default_factory=deque)
    lines: dict[Hashable, _Line[T]] = field(default_factory=dict)
    heap: list[tuple[float, int, Hashable]] = field(default_factory=list)
    now: float = 0.0
    batch: int = 0

    @property
    def waits(self) -> bool:
        return bool(self.things or self.heap)


class Turns(Generic[T]):
    """Waiting things of some tokens each. cost: what a token of a top line counts, else 1."""

    def __init__(self, cost: Mapping[Hashable, float]) -> None:
        self._cost = cost
        self._root: _Line[T] = _Line()
        self._order = count()
        self._batch = 0

    def __bool__(self) -> bool:
        return self._root.waits

    def add(self, path: Path, tokens: int, thing: T) -> None:
        """Put it at the end of its line."""
        fork = self._root
        for key in path:
            line = fork.lines.setdefault(key, _Line())
            if not line.waits:
                start = max(fork.now, line.end)
                heapq.heappush(fork.heap, (start, next(self._order), key))
            fork = line
        fork.things.append((tokens, thing))

    def begin(self) -> None:
        """What is popped from here on is one batch: its first turn is the one that is being served."""
        self._batch += 1

    def peek(self) -> tuple[Path, int, T]:
        """The thing whose turn it is, with its line and tokens. Raises IndexError where none waits."""
        path, line = [], self._root
        while line.heap:
            key = line.heap[0][2]
            path.append(key)
            line = line.lines[key]
        tokens, thing = line.things[0]
        return tuple(path), tokens, thing

    def pop(self, *, free: bool = False) -> None:
        """Take the thing whose turn it is. free: nobody wants it any more; its line had no turn."""
        path, tokens, _ = self.peek()
        counted = 0.0 if free else tokens * self._cost.get(path[0], 1.0)
        self._take(self._root, path, counted)

    def _take(self, fork: _Line[T], path: Path, counted: float) -> None:
        if not path:
            fork.things.popleft()
            return
        key, start = path[0], fork.heap[0][0]
        line = fork.lines[key]
        self._take(line, path[1:], counted)
        if counted and fork.batch != self._batch:
            fork.batch, fork.now = self._batch, max(fork.now, start)
        line.end = start + counted
        if line.waits:
            heapq.heapreplace(fork.heap, (line.end, next(self._order), key))
        else:
            heapq.heappop(fork.heap)
            if len(fork.lines) > REMEMBERED:
                kept = {k: x for k, x in fork.lines.items() if x.waits or x.end > fork.now}
                fork.lines = kept

    def ahead_of(self, path: Path) -> bool:
        """Whether what is next would have had its turn before what `path` has taken is over."""
        fork = self._root
        for key in path:
            if not fork.heap or key not in fork.lines:
                return False
            start, _, following = fork.heap[0]
            if following != key:
                return start < fork.lines[key].end
            fork = fork.lines[key]
        return False
