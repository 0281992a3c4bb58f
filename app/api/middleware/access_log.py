"""One line a request, where the operator asks for it: who asked which route, and what came of it.

No path and no query is logged, but the route's own path: what a client sends is nobody's to read.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import matched_of
from app.api.caller import adapter_of, address_of, name_of
from app.inference.caller import Trace

log = logging.getLogger("app.access")
LINE = (
    "%(method)s %(route)s %(status)s, error %(error_type)s, adapters %(adapters)s, "
    "%(tokens)s tokens, %(ms)s ms, by %(by)s at %(address)s, request %(request_id)s"
)
MOST_ADAPTERS = 20  # that are named


@dataclass(frozen=True)
class AccessLog:
    """Around Count, which knows the status, and so around everything that may refuse."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            log.info(LINE, _members(scope))


def _members(scope: Scope) -> dict[str, object]:
    state, path = scope["state"], matched_of(scope).path
    trace: Trace = state["trace"]
    adapters = trace.adapters or [name for name in [adapter_of(scope)] if name]
    return {
        "request_id": state["request_id"],
        "method": scope["method"],
        "route": path,
        "adapters": ",".join(adapters[:MOST_ADAPTERS]) or None,
        "status": state["status"],
        "error_type": state["trace"].refusal,
        "tokens": trace.tokens,
        "ms": round(1000 * (time.perf_counter() - state["began"]), 3),
        "by": name_of(scope),
        "address": address_of(scope),
    }
