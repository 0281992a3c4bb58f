"""Ends a request whose client has gone away, or whose X-Request-Timeout is over.

Of a route that waits for the model it ends the work. Of any other it ends the waiting for the body
only: what changes adapters is never cut off in the midst of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.errors import respond
from app.api.refusal import Refusal, invalid

TIMEOUT = "x-request-timeout"


@dataclass(frozen=True)
class Deadline:
    """Cancels a request at its deadline or once its client is gone; nothing else does."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        model = matched_of(scope).access.model
        try:
            end = end_of(Headers(scope=scope).get(TIMEOUT), scope["state"]["began"])
        except Refusal as refusal:
            if model:
                await respond(refusal, scope, receive, send)
                return
            end = None
        if model:
            await self._with_work(end, scope, receive, send)
        else:
            await self.app(scope, _in_time(receive, end), send)

    async def _with_work(
        self, end: float | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """The app, cancelled at the end or once the client is gone, unless its answer has begun.

        In the request's own task: what is counted of it is counted before the client can ask again.
        """
        body = _Body(receive)
        try:
            async with asyncio.timeout(_left(end)) as timer:

                async def watched_send(message: Message) -> None:
                    gone.cancel()
                    timer.reschedule(None)
                    await send(message)

                async def watch() -> None:
                    await body.disconnected()
                    with contextlib.suppress(RuntimeError):  # its time is over as well
                        timer.reschedule(0)

                gone = asyncio.ensure_future(watch())
                try:
                    await self.app(scope, body.next, watched_send)
                finally:
                    gone.cancel()
        except TimeoutError:
            if not timer.expired():
                raise
            await respond(_gone() if body.gone else _late(), scope, receive, send)


@dataclass(eq=False)
class _Body:
    """A request's body on its way: once it has come, whether the client has gone away."""

    receive: Receive
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False

    async def next(self) -> Message:
        """As receive."""
        message = await self.receive()
        if not message.get("more_body", False):
            self.whole.set()
        return message

    async def disconnected(self) -> None:
        """Returns once the body has come and the client has gone away."""
        await self.whole.wait()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True


def _in_time(receive: Receive, end: float | None) -> Receive:
    """receive, which raises Refusal (504) once the time is over while a body is coming."""
    coming = True

    async def next_message() -> Message:
        nonlocal coming
        try:
            message = await asyncio.wait_for(receive(), _left(end) if coming else None)
        except TimeoutError:
            raise _late() from None
        coming = message.get("more_body", False)
        return message

    return receive if end is None else next_message


def _late() -> Refusal:
    return Refusal(
        504, "deadline_exceeded", f"not answered within the {TIMEOUT} that was asked for"
    )


def _gone() -> Refusal:
    return Refusal(499, "client_gone", "the client went away")  # nobody reads this


def end_of(value: str | None, began: float) -> float | None:
    """Raises Refusal for what is no number of seconds above 0."""
    if value is None:
        return None
    try:
        timeout_s = float(value)
    except ValueError:
        timeout_s = -1.0
    if not 0 < timeout_s < math.inf:
        raise invalid(TIMEOUT, f"is {value!r}; it is a number of seconds, above 0")
    return began + timeout_s


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.perf_counter())
