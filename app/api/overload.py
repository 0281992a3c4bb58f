"""Who asks, how urgently, and the door that is shut while the queue is full.

A request that comes then is refused before it is parsed or tokenised, which would take time from those
that were let in; unless it has come again when it was told to.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.body import receive_body
from app.api.errors import Refusal, invalid, refusal_of, respond
from app.api.serving import Serving
from app.engine.admission import Asker, QueueFull

PRIORITY = "x-priority"


async def asker_of(request: Request) -> Asker:
    """client: its key, what it sends as one, or its address. Raises Refusal for an unknown priority."""
    priority = request.headers.get(PRIORITY, "interactive")
    if priority not in ("interactive", "bulk"):
        raise invalid(PRIORITY, f"is {priority!r}; it may be interactive or bulk")
    client = _client(request.scope)
    source = _source(request.scope)
    key = hash((source, request.state.body_digest))
    booked = request.scope["state"].get("booked", False)
    return Asker(client, source, priority == "bulk", key, booked)


def _client(scope: Scope) -> Hashable:
    key = scope["state"].get("key")
    said = key.name if key else Headers(scope=scope).get("authorization")
    return hash(said) if said else (scope.get("client") or ("",))[0]


def _source(scope: Scope) -> Hashable:
    """What can be told apart before the body is read: client, route and adapter."""
    return hash((_client(scope), scope["path"], scope["query_string"]))


@dataclass(frozen=True)
class Gate:
    """Around every request that needs the model, inside of the guard."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not matched_of(scope).access.model:
            await self.app(scope, receive, send)
            return
        serving: Serving = scope["app"].state.serving
        admission = serving.engine.admission
        source = _source(scope)
        if not admission.shut_for(source):
            await self.app(scope, receive, send)
            return
        try:
            body, digest = await receive_body(Request(scope, receive))
            key = hash((source, digest))
            if not admission.claim(key):
                raise admission.refuse(key)
        except (QueueFull, HTTPException, Refusal) as error:
            request = Request(scope)
            await respond(request, refusal_of(error, request))(scope, receive, send)
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
