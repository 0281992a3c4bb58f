"""Finds the route that a request matches, and marks its answer with the request's id."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import match
from app.api.draining import Drain
from app.inference.caller import Trace

MAX_ID_LENGTH = 128
DOCUMENTATION = {  # its pages hold their scripts; the page at / brings its own, stricter ones
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Identify:
    """Everything that stands inside reads the route, the id and the time from the request's
    state.
    """

    app: ASGIApp
    drain: Drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {}).update(
            began=time.perf_counter(),
            request_id=request_id,
            trace=Trace(),
            matched=match(scope["app"].routes, scope),
        )

        async def marked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                if self.drain.leaving:
                    headers["Connection"] = "close"
                html = headers.get("content-type", "").startswith("text/html")
                if html and "content-security-policy" not in headers:
                    headers.update(DOCUMENTATION)
            await send(message)

        await self.app(scope, receive, marked_send)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    good = 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable()
    return given if good else uuid.uuid4().hex
