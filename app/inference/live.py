"""The last minute, for who watches the server: batches by adapter, tokens a second, latencies.

Bounded, and kept in memory only; what is counted for good is metrics.py's. Told from the model's
threads and from the event loop.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from app.engine.forward import Forward

SECONDS = 60  # that are looked back at
MOST_BATCHES = 64
MOST_LATENCIES = 4096  # of answered requests, the latest
MOST_NAMES = 1024


@dataclass(frozen=True)
class Batch:
    """One forward pass. ended: Unix time. ms: how long it took. adapters: tokens by name."""

    id: int
    ended: float
    ms: float
    adapters: dict[str, int]


@dataclass(frozen=True)
class Latency:
    """Of the calls of the model that were answered in the last minute, 4,096 at most. null: of
    none.
    """

    requests: int
    p50_ms: float | None
    p99_ms: float | None


class Live:
    """What happened lately. clock: Unix time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ids = count(1)
        self._batches: deque[tuple[int, float, float, Counter[str]]] = deque(maxlen=MOST_BATCHES)
        self._tokens: Counter[int] = Counter()  # by second
        self._latencies: deque[tuple[float, float]] = deque(maxlen=MOST_LATENCIES)
        self._names: OrderedDict[str, str] = OrderedDict()

    def called(self, digest: str, name: str) -> None:
        """The version is asked for by this name."""
        with self._lock:
            self._names[digest] = name
            self._names.move_to_end(digest)
            if len(self._names) > MOST_NAMES:
                self._names.popitem(last=False)

    def ran(self, forward: Forward) -> None:
        """One forward pass is over."""
        tokens: Counter[str] = Counter()
        for sequence in forward.batch:
            tokens[sequence.version.digest] += len(sequence.ids)
        now = self._clock()
        with self._lock:
            self._batches.append((next(self._ids), now, forward.seconds, tokens))
            self._tokens[int(now)] += tokens.total()
            for second in [s for s in self._tokens if s < now - SECONDS - 1]:
                del self._tokens[second]

    def answered(self, seconds: float) -> None:
        """One call of the model has been answered."""
        with self._lock:
            self._latencies.append((self._clock(), seconds))

    def tokens_per_s(self) -> list[int]:
        """Of each of the last whole seconds, the oldest first."""
        now = int(self._clock())
        with self._lock:
            return [self._tokens[second] for second in range(now - SECONDS, now)]

    def batches(self) -> list[Batch]:
        """The last ones, the oldest first. A version that nobody asked for by name (a shadow's, or
        one that is measured) is called by its first 12 digits.
        """
        with self._lock:
            rows, names = list(self._batches), dict(self._names)
        batches = []
        for number, ended, seconds, tokens in rows:
            adapters: Counter[str] = Counter()
            for digest, size in tokens.items():
                adapters[names.get(digest, digest[:12])] += size
            batches.append(Batch(number, ended, round(1000 * seconds, 3), dict(adapters)))
        return batches

    def latency(self) -> Latency:
        """Of the last minute."""
        since = self._clock() - SECONDS
        with self._lock:
            times = [seconds for at, seconds in self._latencies if at >= since]
        times.sort()
        return Latency(len(times), _percentile_ms(times, 0.5), _percentile_ms(times, 0.99))


def _percentile_ms(times: Sequence[float], share: float) -> float | None:
    """The least time that this share of them does not exceed; times in seconds, sorted."""
    if not times:
        return None
    return round(1000 * times[max(0, -int(-share * len(times) // 1) - 1)], 3)
