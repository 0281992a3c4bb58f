"""Counts every request: its route, adapters, status, refusal and latency, and how many are being
answered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.choosing import PREFIX
from app.api.draining import Drain
from app.inference.caller import Trace
from app.inference.metrics import Metrics


@dataclass(frozen=True)
class Count:
    """in_flight of the drain counts requests that are being answered, probes aside."""

    app: ASGIApp
    metrics: Metrics
    drain: Drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client went away before an answer began

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        counts = not matched_of(scope).access.probe
        self.drain.in_flight += counts
        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            status, scope["state"]["trace"].refusal = 500, "internal"  # answered further outside
            raise
        finally:
            self.drain.in_flight -= counts
            self._count(scope, status)

    def _count(self, scope: Scope, status: int) -> None:
        state = scope["state"]
        state["status"] = status
        seconds = time.perf_counter() - state["began"]
        trace: Trace = state["trace"]
        route = (
            state["matched"].path.removeprefix(PREFIX) or "/"
        )  # the same route, whatever the way
        adapters = trace.adapters or [""]
        self.metrics.request(route, adapters, status, seconds, trace.refusal)
        if status == 200 and matched_of(scope).access.model:
            self.metrics.live.answered(seconds)
        for adapter, arm in trace.arms:
            self.metrics.trial(adapter, arm, status, seconds)
