"""A dialect: how one family of clients reads an error, and what it calls the inputs of a body.

A route declares its dialect beside what it needs (access.py). Knows refusals; knows no routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response

from app.api.refusal import Refusal

ANY_ROUTE = (400, 401, 403)  # from any route: an odd path, no key, the wrong key
MAX_MESSAGE = 2_000  # characters
MAX_PROBLEMS_BYTES = 40 << 10  # of a refusal's problems: a refusal has 64 KiB at most
SCHEMA: dict[str, Any] = {
    "title": "Error",
    "type": "object",
    "required": ["error", "error_type", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong and what to do."},
        "error_type": {"type": "string", "description": "Stable; branch on this."},
        "request_id": {"type": "string"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["reason"],
                "properties": {
                    "reason": {"type": "string"},
                    "tensor": {"type": "string"},
                    "field": {"type": "string"},
                },
            },
        },
        "problem_count": {"type": "integer", "description": "Where not all of them are here."},
        "nearest": {"type": "array", "items": {"type": "string"}},
    },
}


@dataclass(frozen=True)
class Dialect:
    """shape: (refusal, our own members) -> the answer's members; schema: theirs, as JSON schema.

    statuses: error types, or causes, that have another status here. inputs: the member that holds
    the inputs.
    """

    shape: Callable[[Refusal, dict[str, Any]], dict[str, Any]]
    schema: Mapping[str, Any]
    statuses: Mapping[str, int] = field(default_factory=dict)
    inputs: str = "inputs"

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """FastAPI's `responses` for error answers: these, and those that any route may give."""
        content = {"application/json": {"schema": dict(self.schema)}}
        return {
            status: {"description": "Error", "content": content}
            for status in sorted({*ANY_ROUTE, *statuses})
        }

    def answer(self, refusal: Refusal, request_id: str) -> Response:
        """The refusal as its clients read it."""
        members: dict[str, Any] = {
            "error": _short(refusal.message),
            "error_type": refusal.error_type,
            "request_id": request_id,
            **refusal.more,
        }
        if refusal.problems:
            problems = members["problems"] = _within_bytes(refusal.problems)
            if len(problems) < len(refusal.problems):
                members.setdefault("problem_count", len(refusal.problems))
        status = refusal.look_up(self.statuses, refusal.status)
        # json and not orjson: what a client sent, and we quote, may hold half a surrogate pair.
        body = json.dumps(self.shape(refusal, members))
        headers = {**refusal.headers, "X-Request-Id": request_id}
        return Response(body, status, headers, "application/json")


NATIVE = Dialect(lambda _, members: members, SCHEMA)
documented = NATIVE.documented


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


def _within_bytes(problems: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """As many problems as an answer may hold."""
    short_problems, remaining = [], MAX_PROBLEMS_BYTES
    for problem in problems:
        short = {name: _short(text) for name, text in problem.items()}
        remaining -= len(json.dumps(short))
        if remaining < 0:
            break
        short_problems.append(short)
    return short_problems
