"""An answer that is an error: status, stable type, what is wrong, what to do. Knows no shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

MAX_FAULTS = 20  # of a body that are told
MAX_FAULTS_LOGGED = 3
PLACE = re.compile(r"(\[\d+\]) ")
EMPTY = ("empty", "too_short", "string_too_short")  # pydantic's words, and inputs.py's
T = TypeVar("T")


@dataclass(eq=False)
class Refusal(Exception):
    """problems: [{"field" or "tensor", "reason"}]; more: further members of the answer.

    for_log: what the log says where the message would name what the client has named.
    cause: finer than the type, for dialects that tell apart what is one type here.
    """

    status: int
    error_type: str
    message: str
    problems: list[dict[str, str]] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    for_log: str = ""
    cause: str = ""

    def look_up(self, table: Mapping[str, T], other: T) -> T:
        """What a table says of its cause, or else of its type; other: where it knows neither."""
        return table.get(self.cause, table.get(self.error_type, other))


class BodyTooLarge(HTTPException):
    """An HTTPException, so that FastAPI's own body reader lets it through."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the body is over the cap of {max_bytes:,} bytes")


def invalid(name: str, reason: str, cause: str = "") -> Refusal:
    """422 for one field."""
    problems = [{"field": name, "reason": reason}]
    return Refusal(422, "validation", f"{name} {reason}", problems, cause=cause)


def validation_refusal(faults: Sequence[Mapping[str, Any]], count: int) -> Refusal:
    """422 with the first of pydantic's `count` faults."""
    problems = [_problem(fault) for fault in faults[:MAX_FAULTS]]
    first = problems[0]
    more = {"problem_count": count} if count > len(problems) else {}
    message = f"{first['field']}: {first['reason']}"
    kinds = "; ".join(f"{_of_ours(fault)}: {fault['type']}" for fault in faults[:MAX_FAULTS_LOGGED])
    cause = "empty" if faults[0]["type"] in EMPTY else ""
    return Refusal(422, "validation", message, problems, more=more, for_log=kinds, cause=cause)


def _of_ours(fault: Mapping[str, Any]) -> str:
    """("body", "labels", 3) -> labels. A member that is not ours is nameless."""
    parts = _within(fault["loc"])
    return str(parts[0]) if parts and fault["type"] != "extra_forbidden" else "the request"


def _problem(fault: Mapping[str, Any]) -> dict[str, str]:
    """A reason that begins with a place in a list, "[3] is empty", is its field's: inputs[3]."""
    field, reason = _where(fault["loc"]), fault["msg"].removeprefix("Value error, ")
    if place := PLACE.match(reason):
        return {"field": field + place[1], "reason": reason[place.end() :]}
    return {"field": field, "reason": reason}


def _where(loc: tuple[int | str, ...]) -> str:
    """("body", "inputs", 3) -> inputs[3]."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in _within(loc))
    return text.lstrip(".") or str(loc[0] if loc else "body")


def _within(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc
