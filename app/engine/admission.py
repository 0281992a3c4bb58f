"""Which requests may wait for the model: backpressure and load shedding, by tokens.

A request is admitted whole or refused at once (load shedding). A refusal says when to retry
(backpressure): from the measured drain rate and the retries promised before it. Each source has an
equal share of the queue, so a flood sheds its own requests. Knows sizes, sources and seconds; knows
no sequences, turns or HTTP.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from app.engine.bookings import Bookings

WINDOW_S = 2.0  # over which the drain rate is measured
AT_FIRST_TOKENS_PER_S = 10_000.0  # until something has been measured
AT_FIRST_REQUEST_TOKENS = 64.0  # likewise, of a usual request
LATEST_SHARE = 0.05  # of the latest request in what is usual


class QueueFull(Exception):
    """More tokens are waiting than are admitted.

    retry_after_s: until this request would be let in.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many tokens are waiting; try again in {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Asker:
    """Who asks, and how urgently.

    client: shares the model fairly with the other clients. source: its waiting tokens are counted
    together. bulk: stands back behind interactive requests. key: identifies a request across
    retries. booked: a retry at the time that its refusal named, admitted above the limit. span: as
    tracing knows the request; nobody here reads it.
    """

    client: Hashable = None
    source: Hashable = None
    bulk: bool = False
    key: Hashable = None
    booked: bool = False
    span: object = field(default=None, compare=False)


class Admission:
    """The tokens that wait, by source, and their limit. One lock is around all of it."""

    def __init__(
        self,
        max_tokens: int | None,
        max_s: float = 5.0,
        floor_tokens: int = 4096,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """max_tokens: that may wait; None: what drains in max_s seconds, at least floor_tokens."""
        self._max_tokens = max_tokens
        self._max_s = max_s
        self._floor_tokens = floor_tokens
        self._clock = clock
        self._lock = threading.Lock()
        self._bookings = Bookings(clock)
        self._drain_tokens, self._drain_s = 0.0, 0.0  # both fade with WINDOW_S
        self._drain_at = 0.0
        self._request_tokens = AT_FIRST_REQUEST_TOKENS
        self._of_source: Counter[Hashable] = Counter()
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """How many wait now. Read without the lock: one int, for a look."""
        return self._tokens

    @property
    def max_tokens(self) -> int:
        """How many may wait now."""
        if self._max_tokens is not None:
            return self._max_tokens
        return max(self._floor_tokens, int(self._max_s * self.tokens_per_s))

    @property
    def tokens_per_s(self) -> float:
        """The measured drain rate."""
        return self._drain_tokens / self._drain_s if self._drain_s else AT_FIRST_TOKENS_PER_S

    def tokens_of(self, source: Hashable) -> int:
        """How many of the source's tokens wait."""
        with self._lock:
            return self._of_source[source]

    def sheds(self, source: Hashable) -> bool:
        """Whether to shed the source's next request unread: the queue is full for an average one.

        A source with nothing waiting is never shed, so that its request is read and counted.
        """
        with self._lock:
            size = self._request_tokens
            full = self._tokens + size > self.max_tokens
            return full and source in self._of_source and not self._has_share(source, size)

    def admit(self, asker: Asker, size: int) -> None:
        """Count a request's tokens as waiting. Where none wait, any one request is admitted.

        Raises QueueFull.
        """
        with self._lock:
            over = self._tokens + size - self.max_tokens
            may_pass = over > 0 and (
                asker.booked
                or self._has_share(asker.source, size)
                or self._bookings.claim(asker.key)
            )
            if self._tokens and over > (self.max_tokens if may_pass else 0):
                raise self._refusal(asker.key, size)
            if self._tokens + size <= self.max_tokens // 2:
                self._bookings.calm()
            self._request_tokens += LATEST_SHARE * (size - self._request_tokens)
            self._tokens += size
            self._of_source[asker.source] += size

    def leave(self, source: Hashable, tokens: int) -> None:
        """So many of the source's tokens wait no more."""
        with self._lock:
            self._tokens -= tokens
            self._of_source[source] -= tokens
            if self._of_source[source] <= 0:
                del self._of_source[source]

    def claim(self, key: Hashable) -> bool:
        """Whether a full queue lets this request in all the same, as it comes again at its time."""
        with self._lock:
            return self._bookings.claim(key)

    def refuse(self, key: Hashable) -> QueueFull:
        """The refusal of a request that came while the queue was full and was not even read."""
        with self._lock:
            return self._refusal(key, self._request_tokens)

    def measure(self, tokens: int, started: float) -> None:
        """Measure the drain rate: so many tokens have been run since `started`, by the clock."""
        with self._lock:
            now = self._clock()
            passed = now - max(started, self._drain_at)
            fade = math.exp(-passed / WINDOW_S)
            self._drain_tokens = self._drain_tokens * fade + tokens
            self._drain_s = self._drain_s * fade + passed
            self._drain_at = now

    def _has_share(self, source: Hashable, size: float) -> bool:
        """Whether it stays within the source's even part of the places, however others flood."""
        sources = len(self._of_source) + (source not in self._of_source)
        return self._of_source[source] + size <= self.max_tokens / sources

    def _refusal(self, key: Hashable, size: float) -> QueueFull:
        rate = self.tokens_per_s
        wait_s = max(0.0, self._tokens + size - self.max_tokens) / rate
        return QueueFull(self._bookings.book(key, size, rate, wait_s))
