"""A request -> the Caller that everything below the routes works with."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import Scope

from app.api.access import matched_of
from app.api.choosing import header_adapter
from app.api.key_entries import secret_of
from app.api.refusal import invalid
from app.catalog.change import Change
from app.catalog.pointer import valid_name
from app.engine.admission import Asker
from app.inference.caller import Caller, Key

PRIORITY, MIN_REVISION = "x-priority", "x-min-revision"
LARGEST = 2**53  # a revision is one of JSON's whole numbers


async def caller_of(request: Request) -> Caller:
    """Who sent the request. A route that waits for the model takes its body first: retries of one
    request are told by their bodies.

    Raises Refusal for an unknown priority, and for what is no revision.
    """
    scope, state = request.scope, request.scope["state"]
    waits = matched_of(scope).access.model
    priority = request.headers.get(PRIORITY, "interactive") if waits else "interactive"
    if priority not in ("interactive", "bulk"):
        raise invalid(PRIORITY, f"is {priority!r}; it may be interactive or bulk")
    change: Change = state.get("change") or Change()
    change.by = name_of(scope)  # the name's history has it
    source = source_of(scope)
    asker = Asker(
        client_of(scope),
        source,
        bulk=priority == "bulk",
        key=hash((source, state.get("body_digest"))) if waits else None,
        booked=state.get("booked", False),
        span=state["trace"].span,
    )
    return Caller(
        key=key_of(scope),
        asker=asker,
        address=request.client.host if request.client else "",
        labels=request.headers,
        revisions=_revisions(request.headers.getlist(MIN_REVISION)),
        trace=state["trace"],
        change=change,
    )


def _revisions(values: list[str]) -> dict[str | None, int]:
    """Of a name that is listed twice the later one."""
    revisions: dict[str | None, int] = {}
    for part in (part.strip() for value in values for part in value.split(",")):
        name, revision = _revision(part)
        revisions[name] = max(revision, revisions.get(name, 0))
    return revisions


def _revision(text: str) -> tuple[str | None, int]:
    """A name and its revision; None: of all names that are not listed."""
    name, equals, number = text.rpartition("=")
    whole = number.isascii() and number.isdigit() and len(number) <= 16
    if whole and int(number) <= LARGEST and (valid_name(name) if equals else not name):
        return name or None, int(number)
    raise invalid(MIN_REVISION, "is no revision, which is a whole number, and no list of name=7")


Called = Annotated[Caller, Depends(caller_of)]


def key_of(scope: Scope) -> Key | None:
    """The key that the request came with; None: without one, which was enough."""
    key: Key | None = scope["state"].get("key")
    return key


def client_of(scope: Scope) -> Hashable:
    """Its key, what it sends as one, or its address."""
    key = key_of(scope)
    secret = key.name if key else secret_of(Headers(scope=scope))
    return hash(secret) if secret else (scope.get("client") or ("",))[0]


def source_of(scope: Scope) -> Hashable:
    """What can be told apart before the body is read: client, route and adapter."""
    header = header_adapter(Headers(scope=scope))
    return hash((client_of(scope), scope["path"], scope["query_string"], header))


def name_of(scope: Scope) -> str | None:
    """The name of its key, for logs; None: it has none, or was refused before one was asked for."""
    key: Key | None = scope["state"].get("key")
    return key.name if key else None


def address_of(scope: Scope) -> str | None:
    """Where it came from, for logs: an address and nothing else, whatever a proxy's header says."""
    host = str((scope.get("client") or ("",))[0])
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def adapter_of(scope: Scope) -> str | None:
    """The adapter that the path names, for logs; None for what is no name, and for one that is not
    served where a stranger asks: it may be anything.
    """
    name = matched_of(scope).params.get("name", "")
    known = name in scope["app"].state.serving.runtime.registry.names
    return name if known or (valid_name(name) and scope["state"].get("admitted")) else None
