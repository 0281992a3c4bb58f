"""A span around each request, where tracing is on: its parent from traceparent, and its own context
in traceresponse.

Knows HTTP; of tracing it knows that a span begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.inference.caller import Trace

Attributes = dict[str, Any]
BeginSpan = Callable[[str, Mapping[str, str], Attributes], "Span"]


class Span(Protocol):
    """A request's, from its begin until end() is called, once."""

    @property
    def traceresponse(self) -> str:
        """Its context, as the header of that name writes it."""

    def end(self, status: int, trace: Trace) -> None:
        """The request is over: what it was answered, and what is known of it."""


@dataclass(frozen=True)
class TraceRequests:
    """Every request but the probes. begin: a span of that name, by the request's headers."""

    app: ASGIApp
    begin: BeginSpan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or matched_of(scope).access.probe:
            await self.app(scope, receive, send)
            return
        status, trace = 499, scope["state"]["trace"]  # the client went away before an answer began
        span = trace.span = self._begin(scope)

        async def marked_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["traceresponse"] = span.traceresponse
            await send(message)

        try:
            await self.app(scope, receive, marked_send)
        except Exception:
            status, trace.refusal = 500, "internal"  # answered further outside
            raise
        finally:
            span.end(status, trace)

    def _begin(self, scope: Scope) -> Span:
        """Named by the route that it matched. The path and the query are the client's own words."""
        method, route = scope["method"], matched_of(scope).path
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "bert_lora.request_id": scope["state"]["request_id"],
        }
        return self.begin(f"{method} {route}", Headers(scope=scope), attributes)
