"""How much each key and adapter may ask for: token buckets that may go into debt.

Who has anything left is let in, whatever the size of the request, and waits for as long as it has
overdrawn: so no request is too large to be ever let in. Touched from the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

BURST_S = 1.0  # of its rate that who was quiet may take at once
MOST_BUCKETS = 10_000  # beyond, only buckets in debt are kept


class QuotaExceeded(Exception):
    """retry_after_s: until there is something left again."""

    def __init__(self, whose: str, tokens_per_s: float, retry_after_s: float) -> None:
        super().__init__(
            f"{whose} has used its {tokens_per_s:g} tokens a second (rate limit); try again in "
            f"{retry_after_s:.2f} s"
        )
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Charge:
    """tokens of a request, counted against whose at tokens_per_s; None: without a limit."""

    whose: str
    tokens_per_s: float | None
    tokens: int


@dataclass(eq=False)
class Quotas:
    """clock: seconds, monotonic. replicas: servers that share the load, each of which gives its
    part of every rate.
    """

    clock: Callable[[], float] = time.monotonic
    replicas: int = 1
    _remaining: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def charge(self, charges: Sequence[Charge]) -> None:
        """Take all of them or, where one has nothing left, none. Raises QuotaExceeded."""
        now = self.clock()
        limited = [
            (c, c.tokens_per_s / self.replicas) for c in charges if c.tokens_per_s is not None
        ]
        waits = [(-self._now_remaining(c.whose, rate, now) / rate, c, rate) for c, rate in limited]
        wait_s, worst, rate = max(waits, key=lambda w: w[0], default=(-1.0, None, 0.0))
        if worst is not None and wait_s >= 0:
            raise QuotaExceeded(worst.whose, rate, max(wait_s, 0.001))
        for c, rate in limited:
            self._remaining[c.whose] = (self._now_remaining(c.whose, rate, now) - c.tokens, now)
        if len(self._remaining) > MOST_BUCKETS:
            self._remaining = {k: v for k, v in self._remaining.items() if v[0] < 0}

    def give_back(self, charges: Sequence[Charge]) -> None:
        """What was charged and not let in after all."""
        for c in charges:
            if c.tokens_per_s is not None and c.whose in self._remaining:
                tokens, at = self._remaining[c.whose]
                self._remaining[c.whose] = (tokens + c.tokens, at)

    def _now_remaining(self, whose: str, rate: float, now: float) -> float:
        full = rate * BURST_S
        tokens, at = self._remaining.get(whose, (full, now))
        return min(full, tokens + rate * (now - at))
