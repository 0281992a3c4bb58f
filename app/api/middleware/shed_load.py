"""Load shedding: while the queue is full, what comes is refused before it is parsed or tokenised.

That would take time from those that were let in. A request that comes again when it was told to is
let in. Knows engine/admission; knows nothing of what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.body import receive_body
from app.api.caller import source_of
from app.api.errors import respond
from app.api.refusal import Refusal
from app.api.serving import Serving
from app.engine.admission import QueueFull


@dataclass(frozen=True)
class ShedLoad:
    """Around every route that waits for the model."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not matched_of(scope).access.model:
            await self.app(scope, receive, send)
            return
        serving: Serving = scope["app"].state.serving
        admission = serving.runtime.engine.admission
        source = source_of(scope)
        if not admission.sheds(source):
            await self.app(scope, receive, send)
            return
        try:
            body, digest = await receive_body(Request(scope, receive))
            key = hash((source, digest))
            if not admission.claim(key):
                raise admission.refuse(key)
        except (ClientDisconnect, QueueFull, HTTPException, Refusal) as error:
            await respond(error, scope, receive, send)
            return
        scope["state"]["booked"] = True
        await self.app(scope, _replay(body, receive), send)


def _replay(body: bytearray, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return again
