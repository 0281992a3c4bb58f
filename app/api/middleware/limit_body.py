"""A cap for each body, and one for all bodies together (backpressure on memory)."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.middleware.body_memory import BodyMemory
from app.api.refusal import BodyTooLarge


@dataclass(frozen=True)
class LimitBody:
    """max_body_bytes: of any body but an upload's, which has max_upload_bytes and goes to the
    disk.
    """

    app: ASGIApp
    max_body_bytes: int
    max_upload_bytes: int
    memory: BodyMemory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = matched_of(scope).access.upload
        body = _Body(
            receive,
            int(Headers(scope=scope).get("content-length") or 0),
            self.max_upload_bytes if upload else self.max_body_bytes,
            None if upload else self.memory,
        )
        try:
            await self.app(scope, body.next, send)
        finally:
            body.release()


@dataclass(eq=False)
class _Body:
    """One request's body on its way. announced, cap, received: bytes. memory None: it is not kept
    there.
    """

    receive: Receive
    announced: int
    cap: int
    memory: BodyMemory | None
    received: int = 0

    async def next(self) -> Message:
        """Raises BodyTooLarge; Refusal where all bodies together take too much."""
        if self.received == 0 and self.announced > self.cap:
            raise BodyTooLarge(self.cap)
        message = await self.receive()
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
