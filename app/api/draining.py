"""The end of a server's life: what is being answered is finished, what is new is sent elsewhere."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import FrameType

import uvicorn

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Drain:
    """in_flight: requests that are being answered, probes aside. deadline: monotonic; None: serving."""

    in_flight: int = 0
    deadline: float | None = None

    @property
    def draining(self) -> bool:
        return self.deadline is not None

    @property
    def too_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def begin(self, at_most_s: float) -> None:
        self.deadline = time.monotonic() + at_most_s


class Server(uvicorn.Server):
    """uvicorn's, which on SIGTERM goes on to answer probes, and what is in flight, until that is over.

    A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, at_most_s: float) -> None:
        super().__init__(config)
        self.drain = drain
        self.at_most_s = at_most_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn, which calls it for SIGTERM and SIGINT."""
        if self.drain.draining:
            self.force_exit = self.should_exit = True
            return
        log.info("draining: %d requests in flight", self.drain.in_flight)
        self.drain.begin(self.at_most_s)

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to leave."""
        if self.drain.draining and (self.drain.too_late or not self._answering):
            if self.drain.in_flight:
                log.warning("%d requests are cut off at the deadline", self.drain.in_flight)
            return True
        return await super().on_tick(counter)

    @property
    def _answering(self) -> bool:
        """Whether an answer is awaited, or not all of one has been taken yet."""
        open_now = self.server_state.connections
        return self.drain.in_flight > 0 or any(
            c.transport is not None and c.transport.get_write_buffer_size() > 0 for c in open_now
        )
