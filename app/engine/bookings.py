"""When a refused request is to come again, and its being let in then.

Under a lasting overload new requests take every place that becomes free. A wait from the drain rate
alone would mostly end in another refusal. A refusal therefore books a time: bookings follow each
other a little slower than the queue drains, and a request that comes at its time is let in above
the limit. Knows keys, tokens and seconds; knows no requests.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable
from itertools import count

SHARE = 0.75  # of the drain rate that is kept for those who come again
EARLY_S = 0.05  # a client's clock and the network
LATE_S = 5.0  # then its place is given up
MOST = 100_000  # bookings in memory


class Bookings:
    """The times of refused requests. Not thread-safe: Admission's lock is around it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._due: dict[Hashable, list[float]] = {}  # heaps: after calm() a later one is due sooner
        self._order: list[tuple[float, int, Hashable]] = []
        self._number = count()
        self._next = 0.0

    def book(self, key: Hashable, tokens: float, tokens_per_s: float, wait_s: float) -> float:
        """Seconds until the refused request `key` is let in; at least wait_s."""
        now = self._clock()
        self._give_up(now)
        at = max(now + wait_s, self._next)
        self._next = at + tokens / (SHARE * max(tokens_per_s, 1.0))
        if len(self._order) < MOST:
            heapq.heappush(self._due.setdefault(key, []), at)
            heapq.heappush(self._order, (at, next(self._number), key))
        return at - now

    def claim(self, key: Hashable) -> bool:
        """Whether `key` has a booking whose time has come; it is used up."""
        now = self._clock()
        self._give_up(now)
        due = self._due.get(key)
        if not due or due[0] > now + EARLY_S:
            return False
        self._drop(key)
        return True

    def calm(self) -> None:
        """There is room again: the next refusal need not wait for bookings that nobody claims."""
        self._next = 0.0

    def _give_up(self, now: float) -> None:
        while self._order and self._order[0][0] < now - LATE_S:
            at, _, key = heapq.heappop(self._order)
            if key in self._due and self._due[key][0] <= at:  # else it was claimed
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        due = self._due[key]
        heapq.heappop(due)
        if not due:
            del self._due[key]
