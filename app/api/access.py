"""What a request may do: said where its route is declared, and read from the route that it matched.

Everything that asks about a request before its route runs (who may, how large its body may be,
whether it waits for the model, how its errors look) asks the matched route, and never the path: so
no two readings of one path can differ. A route that says nothing needs an admin key. Knows routes,
no keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from app.api.dialect import NATIVE, Dialect
from app.api.refusal import Refusal
from app.catalog.change import Action

Needs = Literal["nothing", "any key", "unrestricted key", "admin key"]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
MOST_WORDS = 16  # of a path that are compared with the routes' own
LONGEST_COMPARED = 128  # characters of a path that is compared with the routes' own


@dataclass(frozen=True)
class Access:
    """needs: the least key, where the server has keys ("unrestricted": one that may use every
    adapter).

    changes: what it does to a name, which is logged and audited, done or refused
    (record_changes.py). model: runs the model, so load shedding and deadlines apply. upload: its
    body is an adapter, spooled to disk. probe: answered while draining, not counted as in flight.
    dialect: how its errors look.
    """

    needs: Needs = "admin key"
    changes: Action | None = None
    model: bool = False
    upload: bool = False
    probe: bool = False
    dialect: Dialect = NATIVE


CLOSED = Access()
OPEN = Access("nothing")


def access(
    needs: Needs,
    *,
    changes: Action | None = None,
    model: bool = False,
    upload: bool = False,
    probe: bool = False,
    dialect: Dialect = NATIVE,
) -> Callable[[Endpoint], Endpoint]:
    """A route's access: stands between the route's decorator and its function."""

    def declare(endpoint: Endpoint) -> Endpoint:
        declared = Access(needs, changes, model, upload, probe, dialect)
        endpoint.access = declared  # type: ignore[attr-defined]
        return endpoint

    return declare


def open_pages(routes: Sequence[BaseRoute]) -> None:
    """Declare routes that somebody else has made (the documentation's pages) open to all."""
    for route in routes:
        (getattr(route, "endpoint", None) or route).access = OPEN  # type: ignore[union-attr]


def access_of(route: BaseRoute) -> Access:
    """What was declared for the route; CLOSED where nothing was."""
    declared: Access = getattr(getattr(route, "endpoint", None) or route, "access", CLOSED)
    return declared


@dataclass(frozen=True, eq=False)
class Matched:
    """The route of a request. path: the route's own, as documented; params: what stands in its
    place.
    """

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    access: Access = OPEN
    refusal: Refusal | None = None


def match(routes: Sequence[BaseRoute], scope: Scope) -> Matched:
    """The route that the app's router will run, by the router's own rule, or a refusal.

    refusal: 400 for unprintable characters in the path, 404, or 405 with Allow.
    """
    path: str = scope["path"]
    if not path.isprintable():
        reason = "the path holds a control character, which no path here has"
        return _unmatched(path, routes, Refusal(400, "malformed", reason))
    allowed: set[str] = set()
    for route in routes:
        matched, child = route.matches(scope)
        if matched is Match.FULL:
            path_format = getattr(route, "path_format", "unknown")
            return Matched(path_format, child.get("path_params", {}), access_of(route))
        if matched is Match.PARTIAL:
            allowed |= getattr(route, "methods", None) or set()
    if allowed:
        return _unmatched(path, routes, _not_allowed(scope["method"], allowed))
    return _unmatched(path, routes, _not_found(path, routes))


def _unmatched(path: str, routes: Sequence[BaseRoute], refusal: Refusal) -> Matched:
    access = Access("nothing", dialect=_dialect(path, routes))
    return Matched("unknown", access=access, refusal=refusal)


def _dialect(path: str, routes: Sequence[BaseRoute]) -> Dialect:
    """Of a path that matches no route: of the route whose beginning it shares most words with."""
    words = path.split("/", MOST_WORDS)[1:]

    def shared(route: BaseRoute) -> int:
        own = getattr(route, "path", "").split("/")[1:]
        alike = (a == b or b.startswith("{") for a, b in zip(words, own, strict=False))
        return sum(1 for _ in takewhile(bool, alike))

    nearest = max(routes, key=shared)  # the first of several
    return access_of(nearest).dialect if shared(nearest) else NATIVE


def _not_allowed(method: str, allowed: set[str]) -> Refusal:
    methods = ", ".join(sorted(allowed))
    hint = "; an adapter is uploaded with PUT" if method == "POST" and "PUT" in allowed else ""
    return Refusal(
        405,
        "method_not_allowed",
        f"{method:.20} is not allowed here: this path takes {methods}{hint}",
        headers={"Allow": methods},
    )


def _not_found(path: str, routes: Sequence[BaseRoute]) -> Refusal:
    paths = sorted({p for r in routes if (p := getattr(r, "path", "")) and access_of(r) != OPEN})
    near = (
        difflib.get_close_matches(path[:LONGEST_COMPARED], paths, n=1)
        if len(path) <= LONGEST_COMPARED
        else []
    )
    meant = f"; did you mean {near[0]}?" if near else "; /docs has every route"
    return Refusal(404, "not_found", f"there is no {path[:LONGEST_COMPARED]!r} here{meant}")


def matched_of(scope: Scope) -> Matched:
    """The route of this request, as the outermost middleware has matched it."""
    matched: Matched = scope["state"]["matched"]
    return matched


def dialect_of(scope: Scope) -> Dialect:
    """How the errors of this request look: as its route says, or its body."""
    state = scope.get("state", {})
    spoken: Dialect | None = state.get("dialect")  # a body has told which of a path's two it is
    matched: Matched | None = state.get("matched")
    return spoken or (NATIVE if matched is None else matched.access.dialect)
