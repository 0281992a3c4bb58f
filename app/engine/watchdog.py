"""Notices a forward that hangs or a device that is lost, and ends the process for its supervisor.

It has a thread of its own: a hanging forward may block the event loop too. It counts looks and not
seconds: a process that was stopped, or a machine that slept, is not taken for hung. Knows the
engine's pulse; knows no sequences.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping

from app.engine.engine import Engine

log = logging.getLogger(__name__)
LOOK_S = 1.0
TELL_S = 5.0  # in which /livez can say so, before the process ends
FRAMES = 20  # of a thread
EXIT_CODE = 70  # EX_SOFTWARE


class Looks:
    """How many looks in a row a thread has stood still."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def look(self, pulse: Mapping[int, int]) -> int:
        """The most looks that any thread has stood still."""
        before = self._seen
        self._seen = {
            number: (beat, before[number][1] + 1 if before.get(number, (-1,))[0] == beat else 0)
            for number, beat in pulse.items()
        }
        return max((still for _, still in self._seen.values()), default=0)


def watch_forwards(
    engine: Engine, max_still_s: float, end: Callable[[int], object] = os._exit
) -> Callable[[], None]:
    """Start watching; returns the function that ends it.

    A forward that stands still for max_still_s sets engine.hung. It is logged with every thread's
    stack, and `end` is called TELL_S later. A device that is lost (engine.lost) ends the same way.
    """
    over = threading.Event()

    def run() -> None:
        looks = Looks()
        while not over.wait(LOOK_S):
            hangs = looks.look(engine.pulse) * LOOK_S >= max_still_s
            if engine.lost is not None:
                lost = {"why": str(engine.lost)}
                log.critical("the device is lost (%(why)s): this process ends", lost)
            elif hangs:
                engine.hung = True
                still = {"seconds": max_still_s}
                log.critical(
                    "a forward has stood still for %(seconds)g s: this process ends", still
                )
            else:
                continue
            _say_where_threads_stand()
            over.wait(TELL_S)
            end(EXIT_CODE)
            return

    threading.Thread(target=run, name="watchdog", daemon=True).start()
    return over.set


def _say_where_threads_stand() -> None:
    """A line for each, the innermost frame first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        calls = reversed(traceback.extract_stack(frame, limit=-FRAMES))
        stack = " < ".join(f"{c.filename}:{c.lineno} {c.name}" for c in calls)
        stands = {"thread": names.get(number, str(number)), "stack": stack}
        log.critical("the thread %(thread)s stands at %(stack)s", stands)
