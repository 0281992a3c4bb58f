"""The end of a server's life: it is not ready at once, but goes on to accept until balancers know.

Then what is being answered is finished, and what is new is sent elsewhere.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import FrameType

import uvicorn

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Drain:
    """in_flight: requests that are being answered, probes aside. Times are monotonic; None:
    serving.
    """

    in_flight: int = 0
    accept_until: float | None = None
    deadline: float = 0.0

    @property
    def leaving(self) -> bool:
        """Whether it is known that the server will end: it is not ready, and may still accept."""
        return self.accept_until is not None

    @property
    def draining(self) -> bool:
        """Whether what is new is sent elsewhere."""
        return self.accept_until is not None and time.monotonic() >= self.accept_until

    @property
    def too_late(self) -> bool:
        """Whether what is still being answered is cut off."""
        return self.draining and time.monotonic() >= self.deadline

    def begin(self, delay_s: float, at_most_s: float) -> None:
        """Accept for delay_s more, while balancers learn of it; then end within at_most_s."""
        self.accept_until = time.monotonic() + delay_s
        self.deadline = self.accept_until + at_most_s


class Server(uvicorn.Server):
    """uvicorn's, which on SIGTERM goes on to answer probes, and what is in flight, until that is
    over.

    A second signal ends it at once.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Drain, delay_s: float, at_most_s: float
    ) -> None:
        super().__init__(config)
        self.drain = drain
        self.delay_s = delay_s
        self.at_most_s = at_most_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn, which calls it for SIGTERM and SIGINT."""
        if self.drain.leaving:
            self.force_exit = self.should_exit = True
            return
        after = f" after {self.delay_s:g} s" if self.delay_s else ""
        what = {"after": after, "in_flight": self.drain.in_flight}
        log.info("draining%(after)s: %(in_flight)d requests in flight", what)
        self.drain.begin(self.delay_s, self.at_most_s)

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to leave."""
        if self.drain.draining and (self.drain.too_late or not self._answering):
            if self.drain.in_flight:
                cut_off = {"in_flight": self.drain.in_flight}
                log.warning("%(in_flight)d requests are cut off at the deadline", cut_off)
            return True
        return await super().on_tick(counter)

    @property
    def _answering(self) -> bool:
        """Whether an answer is awaited, or not all of one has been taken yet."""
        open_now = self.server_state.connections
        return self.drain.in_flight > 0 or any(
            c.transport is not None and c.transport.get_write_buffer_size() > 0 for c in open_now
        )
