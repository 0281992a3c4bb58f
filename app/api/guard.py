"""Around every request: its id, its body's cap, its count and its latency; none when draining.

Plain ASGI, because Starlette's BaseHTTPMiddleware hides a client's going away.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import Matched, match
from app.api.body_memory import BodyMemory
from app.api.deadline import LATE, TIMEOUT, time_left_s
from app.api.draining import Drain
from app.api.errors import BodyTooLarge, Refusal, respond
from app.api.metrics import Metrics

MAX_ID_LENGTH = 128
MAX_PARAMETERS = 2_048  # of a query
DRAINING = Refusal(
    503,
    "draining",
    "this server is about to end: send the request again, to another one or in a while",
    headers={"Retry-After": "1", "retry-after-ms": "1000"},
)
PAGE = {  # the page's script is in the page itself
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Guard:
    """max_body_bytes: any body but an upload's; max_upload_bytes: PUT /adapters/{name}."""

    app: ASGIApp
    metrics: Metrics
    drain: Drain
    max_body_bytes: int
    max_upload_bytes: int
    bodies: BodyMemory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["began"] = started
        matched = state["matched"] = match(scope["app"].routes, scope)
        body = _Body(
            receive,
            headers,
            started,
            self.max_upload_bytes if matched.access.upload else self.max_body_bytes,
            None if matched.access.upload else self.bodies,
        )
        status = 499  # the client went away before an answer began

        async def stamped_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
                if self.drain.leaving:
                    answer["Connection"] = "close"
                if answer.get("content-type", "").startswith("text/html"):
                    answer.update(PAGE)
            await send(message)

        counts = not matched.access.probe
        app = self._app_for(matched, headers, scope)
        self.drain.in_flight += counts
        try:
            await app(scope, body.next, stamped_send)
        except Exception:
            status = 500  # answered outside of this guard
            raise
        finally:
            self.drain.in_flight -= counts
            body.release()
            self._count(scope, status, time.perf_counter() - started)

    def _app_for(self, matched: Matched, headers: Headers, scope: Scope) -> ASGIApp:
        """What answers: the route's app, or a refusal before anything else is looked at."""
        if self.drain.draining and not matched.access.probe:
            return _answering(DRAINING)
        refusal = matched.refusal or _unreadable(headers, scope)
        return self.app if refusal is None else _answering(refusal)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["state"]["matched"].path
        self.metrics.request(route, scope["state"].get("adapters", [""]), status, seconds)
        for adapter, arm in scope["state"].get("arms", []):
            label = self.metrics.label(adapter)
            self.metrics.trial_requests.labels(label, arm, str(status)).inc()
            self.metrics.trial_latency.labels(label, arm).observe(seconds)


@dataclass(eq=False)
class _Body:
    """One request's body on its way: under its cap, in its time, and within what all may hold together.

    memory: None for one that goes to the disk.
    """

    receive: Receive
    headers: Headers
    started: float
    cap: int
    memory: BodyMemory | None
    received: int = 0
    coming: bool = True

    async def next(self) -> Message:
        """Raises BodyTooLarge, Refusal, HTTPException (504)."""
        if self.received == 0 and int(self.headers.get("content-length") or 0) > self.cap:
            raise BodyTooLarge(self.cap)
        if self.coming:
            message = await _in_time(self.receive, self.headers, self.started)
        else:
            message = await self.receive()
        self.coming = message.get("more_body", False)
        more = len(message.get("body", b""))
        if self.received + more > self.cap:
            raise BodyTooLarge(self.cap)
        if self.memory is not None:
            self.memory.take(self.received, more)
        self.received += more
        return message

    def release(self) -> None:
        if self.memory is not None:
            self.memory.held -= self.received


def _unreadable(headers: Headers, scope: Scope) -> Refusal | None:
    coding = headers.get("content-encoding", "identity").strip().lower()
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


async def _in_time(receive: Receive, headers: Headers, started: float) -> Message:
    """What comes next, within the time that the client has set. Raises HTTPException (504)."""
    try:
        left = time_left_s(headers.get(TIMEOUT), started)
    except Refusal:  # which the route gives
        left = None
    if left is None:
        return await receive()
    try:
        return await asyncio.wait_for(receive(), left)
    except TimeoutError:
        raise LATE from None


def _answering(refusal: Refusal) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(Request(scope), refusal)(scope, receive, send)

    return answer


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    good = 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable()
    return given if good else uuid.uuid4().hex
