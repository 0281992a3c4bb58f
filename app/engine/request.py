"""What one call of Engine.run waits for: its sequences, until each has its row or one has failed.

Knows counts, times and errors; knows no tensors and no HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.engine.admission import Asker


@dataclass(eq=False)
class Request:
    """remaining: sequences without a row. notify: told once, by the engine, that all is over.

    Times are time.perf_counter()'s. The lock is around remaining, error and finished_at: two of the
    model's threads may hold sequences of one request. waiting_tokens and cancelled are written behind
    the queue's lock; cancelled is read without it, as a late look only computes a layer more.
    started_at is written by whoever starts first, or twice at nearly the same time.
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
        """Keep the request's first error. Returns whether this is it; later ones need not be told."""
        with self.lock:
            first = self.error is None
            self.error = self.error or error
            return first
