"""How wide a batch runs: on all cores, or on one thread's share of them.

Each of the model's threads runs a batch of its own on its share of the cores. A batch alone takes
all of them once the spare threads have been quiet for a while: OpenMP's teams sleep at every
barrier where together they are larger than the machine (docs/decisions/0006). Knows threads, cores
and seconds; runs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_S = 0.1  # without work for the spare threads, before the first one takes their cores as well


class Width:
    """The first thread's last beginning, and the spare threads' last end.

    No lock: `_began` is the first thread's alone. `_spare_ended` is one float, written by the spare
    threads; a late look costs the speed of one batch.
    """

    def __init__(
        self, cores: int, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cores = cores
        self._share = max(1, cores // threads)
        self._clock = clock
        self._began = 0.0
        self._spare_ended = 0.0

    def begin(self, *, spare: bool, alone: bool) -> int:
        """How many cores the batch that begins now may use.

        spare: it runs on another thread than the first. alone: nothing waits or runs beside it.
        """
        if spare:
            return self._share
        # Also not right after a backlog: spare threads ended after this one's last batch began.
        now = self._clock()
        quiet = self._spare_ended < min(self._began, now - QUIET_S)
        self._began = now
        return self._cores if alone and quiet else self._share

    def end(self, *, spare: bool) -> None:
        """A thread's work, of any kind, is over."""
        if spare:
            self._spare_ended = self._clock()
