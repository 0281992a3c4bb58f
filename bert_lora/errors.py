"""Why a call has no answer: one tree, the same over HTTP and without a server.

BertLoraError
  Unreachable          no server answered
  MixedVersions        the adapter was replaced while a large call was under way
  Unreadable           what was to be put is no adapter, seen before anything was sent
  WrongText            one of the texts is none, seen before it was sent
  Refused              the server, or the engine, said no: status, type, code, message
    BadRequest         400, 413, 415, 422, 424: the call has to change
    NotPermitted       401, 403: the key
    NotFound           404: no such adapter or version
    Conflict           409, 412: the adapter is in another state
    Unavailable        429, 5xx: the same call may work later; the client has tried again
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

PLACE = re.compile(r"\b(inputs|texts|adapters)\[(\d+)\]")


class BertLoraError(Exception):
    """Anything that a call of this package raises on purpose."""


class Unreachable(BertLoraError):
    """No server answered, though the client tried again for its whole patience."""


class MixedVersions(BertLoraError):
    """The parts of one call were answered by different versions, whose answers do not compare."""


class Unreadable(BertLoraError):
    """A source that holds no adapter."""


class WrongText(BertLoraError):
    """index: which of the call's texts is none, from 0."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"texts[{index}] {reason}")
        self.index, self.reason = index, reason


class Refused(BertLoraError):
    """The answer is an error.

    status: HTTP's. type: as the route's dialect spells it. code: ours, stable (docs/api.md); branch
    on this one. index: which of the call's texts is wrong, from 0; None: none of them. details: the
    answer's members, such as `problems` and `nearest`. retry_after_s: when to come again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        details: Mapping[str, Any],
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.details = status, message, dict(details)
        self.type = str(details.get("error_type", f"http_{status}"))
        self.code = str(details.get("code", self.type))
        self.request_id = str(details.get("request_id", ""))
        self.retry_after_s = retry_after_s
        place = PLACE.search(message)
        self.index = int(place[2]) if place else None

    def __str__(self) -> str:
        return f"{self.message} ({self.status} {self.code})"

    def behind(self, count: int) -> Refused:
        """The same, where the refused request began with the call's text `count`."""
        if self.index is None or count == 0:
            return self
        message = PLACE.sub(lambda place: f"{place[1]}[{int(place[2]) + count}]", self.message)
        return type(self)(self.status, message, self.details, self.retry_after_s)


class BadRequest(Refused):
    """The call has to change."""


class NotPermitted(Refused):
    """The key is missing, unknown, or may not do this."""


class NotFound(Refused):
    """No such adapter or version; `details["nearest"]` has names like it."""


class Conflict(Refused):
    """The adapter is in another state than the call needs."""


class Unavailable(Refused):
    """The same call may work later."""


KINDS: dict[int, type[Refused]] = {
    401: NotPermitted,
    403: NotPermitted,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    429: Unavailable,
}


def refused(status: int, details: Mapping[str, Any], retry_after_s: float | None = None) -> Refused:
    """The error of an answer's members."""
    kind = KINDS.get(status, Unavailable if status >= 500 else BadRequest)
    message = str(details.get("error") or details.get("message") or f"the answer is a {status}")
    return kind(status, message, details, retry_after_s)


def refused_body(status: int, body: bytes, headers: Mapping[str, str]) -> Refused:
    """The error of an HTTP answer, also of one that a proxy gave."""
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError:
        members = None
    details = members if isinstance(members, dict) else {}
    return refused(status, details, _wait_s(headers))


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """What retry-after-ms or Retry-After say; a date is not read."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "")
        if value.isdigit():
            return int(value) / unit
    return None
