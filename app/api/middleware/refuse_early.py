"""Refuses what no route would answer: a server that drains, a path without a route, an unread
coding.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import matched_of
from app.api.draining import Drain
from app.api.errors import respond, retry_after
from app.api.refusal import Refusal

MAX_PARAMETERS = 2_048  # of a query


@dataclass(frozen=True)
class RefuseEarly:
    """Before any key and any byte of a body is looked at."""

    app: ASGIApp
    drain: Drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await respond(refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        matched = matched_of(scope)
        if self.drain.draining and not matched.access.probe:
            why = (
                "this server is about to end: send the request again, to another one or in a while"
            )
            return Refusal(503, "draining", why, headers=retry_after(1))
        return matched.refusal or _unreadable(scope)


def _unreadable(scope: Scope) -> Refusal | None:
    coding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        return Refusal(
            415,
            "unsupported_media_type",
            f"Content-Encoding {coding[:40]!r} is not read: send the body as it is",
            headers={"Accept-Encoding": "identity"},
        )
    if scope["query_string"].count(b"&") >= MAX_PARAMETERS:
        return Refusal(400, "malformed", f"the query has over {MAX_PARAMETERS:,} parameters")
    return None
