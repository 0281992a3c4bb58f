"""What one call of Engine.run waits for: its sequences, until each has its row or one has failed.

Knows counts, times and errors; knows no tensors and no HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from app.engine.admission import Asker


@dataclass(eq=False)
class Request:
    """remaining: sequences without a row. notify: the engine calls it once, when all is over.

    Times are time.perf_counter()'s. Two of the model's threads may run sequences of one request:
    remaining, error and finished_at are behind its lock, waiting_tokens and cancelled behind the
    queue's. cancelled is read without it: a late look computes one layer more. started_at needs
    none: two threads that start at once write nearly the same.
    """

    notify: Callable[[], None]
    asker: Asker
    remaining: int
    put_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    finished_at: float = 0.0
    error: Exception | None = None
    cancelled: bool = False
    waiting_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish_one(self, at: float) -> bool:
        """Count a sequence that has its row. Returns whether it was the last."""
        with self.lock:
            self.remaining -= 1
            self.finished_at = at
            return self.remaining == 0

    def fail(self, error: Exception) -> bool:
        """Keep the request's first error, the one its client learns. Returns whether this is it."""
        with self.lock:
            first = self.error is None
            self.error = self.error or error
            return first


def notify_all(requests: Iterable[Request]) -> None:
    """Tell each request's waiter that it is over."""
    for request in requests:
        request.notify()
