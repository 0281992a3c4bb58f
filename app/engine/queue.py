"""Sequences waiting for the model: admission by tokens, fair turns, the measured drain rate.

Knows lengths and whose turn it is; knows no tensors and no HTTP. One thread takes, any may put.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.adapters.registry import Version
from app.model.batch import Want

SMOOTHING = 0.2  # weight of the newest batch in the drain rate


class QueueFull(Exception):
    """More tokens are waiting than are admitted. retry_after_s: until these would fit."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many tokens are waiting; try again in {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Ticket:
    """One request's sequences on their way; the engine fills results and calls done once.

    cancelled: set by the door when the client went away; its waiting sequences are then dropped.
    """

    done: Callable[[], None]
    results: list[Any]
    left: int
    put_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    finished_at: float = 0.0
    error: Exception | None = None
    cancelled: bool = False


@dataclass(frozen=True, eq=False)
class Waiting:
    """One sequence of a ticket: what to run (door) and where its result goes."""

    ids: Sequence[int]
    types: Sequence[int]
    want: Want
    version: Version | None
    ticket: Ticket
    index: int


class Queue:
    """Waiting sequences, one line per adapter; takes go round the lines."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lines: OrderedDict[Hashable, deque[Waiting]] = OrderedDict()
        self._calls: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._tokens_per_s = 0.0
        self.tokens = 0

    def put(self, sequences: Sequence[Waiting]) -> None:
        """Admit all of a ticket's sequences or none. An empty queue admits any one request.

        Raises QueueFull.
        """
        size = sum(len(s.ids) for s in sequences)
        with self._ready:
            if self.tokens and self.tokens + size > self._max_tokens:
                over = self.tokens + size - self._max_tokens
                raise QueueFull(over / self._tokens_per_s if self._tokens_per_s else 1.0)
            self.tokens += size
            for s in sequences:
                self._lines.setdefault(id(s.version) if s.version else None, deque()).append(s)
            self._ready.notify()

    def put_call(self, call: Callable[[], None]) -> None:
        """Have the model's thread run `call` between two batches."""
        with self._ready:
            self._calls.append(call)
            self._ready.notify()

    def take(self, budget: int) -> list[Waiting] | Callable[[], None] | None:
        """Wait for work: a call, or sequences of at most `budget` tokens (one at least); None: closed.

        One from each line in turn, so that a flood for one adapter does not hold up another.
        """
        with self._ready:
            while True:
                self._ready.wait_for(lambda: self._calls or self._lines or self._closed)
                if self._calls:
                    return self._calls.popleft()
                taken = self._take_sequences(budget)
                if taken:
                    return taken
                if self._closed:
                    return None

    def _take_sequences(self, budget: int) -> list[Waiting]:
        taken: list[Waiting] = []
        room = budget
        while self._lines:
            key, line = next(iter(self._lines.items()))
            s = line[0]
            gone = s.ticket.cancelled or s.ticket.error is not None
            if taken and not gone and len(s.ids) > room:
                break
            line.popleft()
            self.tokens -= len(s.ids)
            if line:
                self._lines.move_to_end(key)
            else:
                del self._lines[key]
            if not gone:
                taken.append(s)
                room -= len(s.ids)
        return taken

    def drained(self, tokens: int, seconds: float) -> None:
        """Tell what the last batch took; feeds Retry-After."""
        rate = tokens / max(seconds, 1e-6)
        with self._ready:
            before = self._tokens_per_s or rate
            self._tokens_per_s = (1 - SMOOTHING) * before + SMOOTHING * rate

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify()
