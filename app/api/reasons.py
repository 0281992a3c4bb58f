"""Why each route may refuse a request: counted from 0, so that a first burst is an increase.

Made from what the routes say of themselves and from the table of errors. Knows no requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.api.access import access_of
from app.api.errors import HTTP_TYPES, TABLE

KEY_STATUSES = {401, 403}
MODEL_STATUSES = {429, 499, 500, 503, 504}
NO_ROUTE = "unknown"  # of what matches none, or is refused before its path is known
NO_ROUTES_TYPES = ("not_found", "method_not_allowed", "malformed", "too_slow", "overloaded")


def reasons(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(path, error type): of every route, each type of each status that it says it may answer."""
    types: defaultdict[int, set[str]] = defaultdict(set)
    for status, kind in (*TABLE.values(), *HTTP_TYPES.items(), (401, "unauthenticated")):
        types[status].add(kind)
    for kind in NO_ROUTES_TYPES:
        yield NO_ROUTE, kind
    for route in routes:
        if isinstance(route, APIRoute):
            access = access_of(route)
            declared = {status for status in route.responses if isinstance(status, int)}
            declared |= MODEL_STATUSES if access.model else set()
            declared |= KEY_STATUSES if access.needs != "nothing" else set()
            yield route.path_format, "internal"
            for status in declared:
                yield from ((route.path_format, kind) for kind in types[status])
