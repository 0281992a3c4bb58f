"""Sequences waiting for the model: admission by tokens, fair turns, the measured drain rate.

Knows lengths and whose turn it is; knows no tensors and no HTTP. Any thread may put; the model's
threads take.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.engine.bookings import Bookings
from app.engine.turns import Path, Turns
from app.engine.version import Version
from app.model.batch import Want

WINDOW_S = 2.0  # over which the drain rate is measured
BULK_COST = 4.0  # a waiting bulk token stands back behind this many interactive ones
SMALLEST_SHARE = 256  # tokens; a backlog is cut no smaller to give every thread some
AT_FIRST_TOKENS_PER_S = 10_000.0  # until something has been measured


class QueueFull(Exception):
    """More tokens are waiting than are admitted. retry_after_s: until this request would be let in."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many tokens are waiting; try again in {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Asker:
    """Who asks. client: shares fairly with others. bulk: stands back behind interactive requests.

    source: whose tokens are counted together at the door. key: what the same request has in common
    with itself when it comes again. booked: it has come again at its time, and is let in above the
    limit.
    """

    client: Hashable = None
    source: Hashable = None
    bulk: bool = False
    key: Hashable = None
    booked: bool = False


@dataclass(eq=False)
class Ticket:
    """One request's sequences on their way; the engine fills results and calls done once.

    cancelled: the client went away, or another of its sequences failed: what waits is dropped.
    waiting: its tokens that are still in the queue. source: the asker's.
    """

    done: Callable[[], None]
    results: list[Any]
    left: int
    put_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    finished_at: float = 0.0
    error: Exception | None = None
    cancelled: bool = False
    waiting: int = 0
    source: Hashable = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, eq=False)
class Waiting:
    """One sequence of a ticket: what to run (door), where its result goes, and in which line it is."""

    ids: Sequence[int]
    types: Sequence[int]
    want: Want
    version: Version | None
    ticket: Ticket
    index: int
    line: Path = (False, None, None)


Call = Callable[[], None]


class Queue:
    """max_tokens: that may wait; None: what drains in max_s seconds, and never under floor_tokens.

    takers: how many threads take.
    """

    def __init__(
        self, max_tokens: int | None, max_s: float = 5.0, floor_tokens: int = 4096, takers: int = 1
    ) -> None:
        self._max_tokens = max_tokens
        self._max_s = max_s
        self._floor_tokens = floor_tokens
        self._takers = takers
        self._turns: Turns[Waiting] = Turns({True: BULK_COST})
        self._calls: deque[Call] = deque()
        self._bookings = Bookings()
        self._ready = threading.Condition()
        self._closed = False
        self._running = 0
        self._drained_at = 0.0
        self._drained = (0.0, 0.0)  # tokens and seconds, both fading with WINDOW_S
        self._request_tokens = 64.0
        self._of_source: Counter[Hashable] = Counter()  # waiting tokens
        self.tokens = 0
        self.changes = 0  # counts what was put: whoever saw this number has seen it all

    @property
    def max_tokens(self) -> int:
        """How many tokens may wait now."""
        if self._max_tokens is not None:
            return self._max_tokens
        return max(self._floor_tokens, int(self._max_s * self.tokens_per_s))

    @property
    def tokens_per_s(self) -> float:
        """At which the waiting drain, as measured."""
        tokens, seconds = self._drained
        return tokens / seconds if seconds else AT_FIRST_TOKENS_PER_S

    def shut_for(self, source: Hashable) -> bool:
        """Whether a request of usual size would be refused; a source without any waiting is read."""
        size = self._request_tokens
        full = self.tokens + size > self.max_tokens
        return full and source in self._of_source and not self._has_share(source, size)

    def _has_share(self, source: Hashable, size: float) -> bool:
        """Whether the source holds less than its even part of the places: others' floods are not its."""
        sources = len(self._of_source) + (source not in self._of_source)
        return self._of_source[source] + size <= self.max_tokens / sources

    def put(self, sequences: Sequence[Waiting], asker: Asker) -> None:
        """Admit all of a ticket's sequences or none. An empty queue admits any one request.

        Raises QueueFull.
        """
        size = sum(len(s.ids) for s in sequences)
        with self._ready:
            over = self.tokens + size - self.max_tokens
            may_pass = over > 0 and (
                asker.booked
                or self._has_share(asker.source, size)
                or self._bookings.claim(asker.key)
            )
            if self.tokens and over > (self.max_tokens if may_pass else 0):
                raise self._refused(asker.key, size)
            if self.tokens + size <= self.max_tokens // 2:
                self._bookings.calm()
            self._request_tokens += 0.05 * (size - self._request_tokens)
            self.tokens += size
            self._of_source[asker.source] += size
            for s in sequences:
                s.ticket.source = asker.source
                s.ticket.waiting += len(s.ids)
                self._turns.add(s.line, len(s.ids), s)
            self.changes += 1
            self._ready.notify_all()

    def claim(self, key: Hashable) -> bool:
        """Whether a full queue lets this request in all the same, as it comes again at its time."""
        with self._ready:
            return self._bookings.claim(key)

    def refuse(self, key: Hashable) -> QueueFull:
        """The refusal of a request that came while the queue was full and was not even read."""
        with self._ready:
            return self._refused(key, self._request_tokens)

    def _refused(self, key: Hashable, size: float) -> QueueFull:
        rate = self.tokens_per_s
        wait_s = max(0.0, self.tokens + size - self.max_tokens) / rate
        return QueueFull(self._bookings.book(key, size, rate, wait_s))

    def put_call(self, call: Call) -> None:
        """Have one of the model's threads run `call`, between two layers if it is busy."""
        with self._ready:
            self._calls.append(call)
            self.changes += 1
            self._ready.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for the ticket any more: its sequences make room at once."""
        with self._ready:
            ticket.cancelled = True
            self._left(ticket, ticket.waiting)

    def take(self, budget: int, *, spare: bool = False) -> tuple[list[Waiting], bool] | Call | None:
        """Wait for work: a call, or sequences of at most `budget` tokens (one at least); None: closed.

        With the sequences comes whether they are all there is: nothing waits or runs beside them.
        A spare thread takes only what is left while another one runs. What is taken counts as
        running until over() is told.
        """
        with self._ready:
            while True:
                self._ready.wait_for(lambda: self._closed or self._has_work(spare))
                if self._calls:
                    self._running += 1
                    self._ready.notify_all()
                    return self._calls.popleft()
                share = max(SMALLEST_SHARE, math.ceil(self.tokens / self._takers))
                taken = self._take(min(budget, share), ())
                if taken:
                    alone = not self._turns and not self._running
                    self._running += 1
                    if self._turns:  # a spare thread that woke before this one waits again
                        self._ready.notify_all()
                    return taken, alone
                if self._closed and not self._turns:
                    return None

    def _has_work(self, spare: bool) -> bool:
        if spare and not self._running:
            return False
        return bool(self._calls or self._turns)

    def take_ahead(self, running: Sequence[Waiting], budget: int) -> list[Waiting] | Call | None:
        """What is to run before the rest of a running batch, without waiting for it; None: nothing.

        A call, or sequences whose turn would have been before the end of the batch's.
        """
        with self._ready:
            if self._calls:
                return self._calls.popleft()
            return self._take(budget, {s.line for s in running}) or None

    def _take(self, budget: int, ahead_of: set[Path] | tuple[()]) -> list[Waiting]:
        """Whose turn it is, up to `budget` tokens; only those before the end of all of these lines.

        A flood has more waiting than a batch holds: it goes ahead of nobody, and who has less is not
        put beside it, to wait for the end of its long batch.
        """
        self._turns.begin()
        taken: list[Waiting] = []
        took: Counter[Hashable] = Counter()
        room, beside_flood = budget, False
        while self._turns:
            _, tokens, s = self._turns.peek()
            if s.ticket.cancelled:
                self._turns.pop(free=True)
                continue
            source = s.ticket.source
            flood = self._of_source[source] + took[source] > budget
            if taken and (tokens > room or flood != beside_flood):
                break
            if ahead_of and (flood or not all(map(self._turns.ahead_of, ahead_of))):
                break
            beside_flood = flood
            took[source] += tokens
            self._turns.pop()
            self._left(s.ticket, tokens)
            taken.append(s)
            room -= tokens
        return taken

    def _left(self, ticket: Ticket, tokens: int) -> None:
        """So many of the ticket's tokens wait no more."""
        self.tokens -= tokens
        ticket.waiting -= tokens
        self._of_source[ticket.source] -= tokens
        if self._of_source[ticket.source] <= 0:
            del self._of_source[ticket.source]

    def over(self) -> None:
        """Tell that what take() gave is over."""
        with self._ready:
            self._running -= 1
            self._ready.notify_all()

    def drained(self, tokens: int, started: float) -> None:
        """Tell how many tokens have been run since `started` (perf_counter)."""
        now = time.perf_counter()
        with self._ready:
            passed = now - max(started, self._drained_at)
            fade = math.exp(-passed / WINDOW_S)
            before = self._drained
            self._drained = (before[0] * fade + tokens, before[1] * fade + passed)
            self._drained_at = now

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify_all()
