"""Errors as part of the interface: the one table exception -> status, and the one JSON shape.

{"error", "error_type", "request_id"} and, where it helps, "problems" and "nearest"; below /v1 the
same inside OpenAI's {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.adapters.receiving.source import SourceForbidden, SourceMalformed
from app.adapters.refusals import AdapterRejected, UnsupportedMedia, UploadTooLarge
from app.catalog.install import MergeMemoryFull, PreconditionFailed
from app.catalog.registry import UnknownAdapter, UnknownVersion
from app.catalog.store import StaleRevision, StoreFull, StoreUnavailable
from app.catalog.trials import NoTrial
from app.engine.failures import DeviceLost, ForwardFailed, NotFinite, OutOfMemory
from app.engine.queue import QueueFull
from app.engine.tokenizer import InputRefused
from app.inference.quota import QuotaExceeded

log = logging.getLogger(__name__)
DOOR = (400, 401, 403)  # an odd path, no key, the wrong key
MAX_FAULTS = 20  # of a body that are told
MAX_MESSAGE = 2_000  # characters
MAX_PROBLEMS_BYTES = 40 << 10  # of a refusal's problems: a refusal has 64 KiB at most

TABLE: dict[type[Exception], tuple[int, str]] = {
    ClientDisconnect: (499, "client_gone"),
    SourceMalformed: (400, "malformed"),
    SourceForbidden: (403, "forbidden"),
    UnknownAdapter: (404, "adapter_not_found"),
    UnknownVersion: (404, "version_not_found"),
    NoTrial: (409, "no_trial"),
    PreconditionFailed: (412, "precondition_failed"),
    StaleRevision: (412, "precondition_failed"),
    UploadTooLarge: (413, "payload_too_large"),
    UnsupportedMedia: (415, "unsupported_media_type"),
    AdapterRejected: (422, "adapter_rejected"),
    InputRefused: (422, "validation"),
    QueueFull: (429, "overloaded"),
    QuotaExceeded: (429, "quota_exceeded"),
    NotFinite: (422, "not_finite"),
    OutOfMemory: (503, "out_of_memory"),
    DeviceLost: (503, "device_lost"),
    ForwardFailed: (500, "forward_failed"),
    StoreFull: (507, "store_full"),
    StoreUnavailable: (503, "store_unavailable"),
    MergeMemoryFull: (507, "merge_memory_full"),
}
HTTP_TYPES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    504: "deadline_exceeded",
}
SCHEMA: dict[str, Any] = {
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
        "problem_count": {"type": "integer", "description": "Where not all of them are told."},
        "nearest": {"type": "array", "items": {"type": "string"}},
    },
}

OPENAI_ERROR = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
}
OPENAI_SCHEMA = {**SCHEMA, "properties": {**SCHEMA["properties"], "error": OPENAI_ERROR}}


@dataclass(eq=False)
class Refusal(Exception):
    """An error answer. problems: [{"field" or "tensor", "reason"}]; more: further JSON members."""

    status: int
    error_type: str
    message: str
    problems: list[dict[str, str]] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def invalid(name: str, reason: str) -> Refusal:
    """422 for one field."""
    return Refusal(422, "validation", f"{name} {reason}", [{"field": name, "reason": reason}])


class BodyTooLarge(HTTPException):
    """An HTTPException, so that FastAPI's own body reader lets it through."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the body is over the cap of {max_bytes:,} bytes")


def documented(*statuses: int, schema: dict[str, Any] = SCHEMA) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for error answers: these, and those that any route gives at its door."""
    content = {"application/json": {"schema": schema}}
    return {
        status: {"description": "Error", "content": content}
        for status in sorted({*DOOR, *statuses})
    }


def install_errors(app: FastAPI) -> None:
    """Every exception that a route may raise, as an answer."""

    async def answer(request: Request, error: Exception) -> Response:
        return respond(request, refusal_of(error, request))

    for kind in (*TABLE, Refusal, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def respond(request: Request, refusal: Refusal) -> Response:
    """The refusal in the shape that the route's clients read."""
    request_id = getattr(request.state, "request_id", "")
    message = _short(refusal.message)
    body: dict[str, Any] = {
        "error": message,
        "error_type": refusal.error_type,
        "request_id": request_id,
        **refusal.more,
    }
    if refusal.problems:
        told = body["problems"] = _told(refusal.problems)
        if len(told) < len(refusal.problems):
            body["problem_count"] = len(refusal.problems)
    if request.url.path.startswith("/v1/"):
        openai = {
            "message": message,
            "type": refusal.error_type,
            "param": next((p["field"] for p in refusal.problems if "field" in p), None),
            "code": refusal.error_type,
        }
        body = {**body, "error": openai}
    # json and not orjson: what a client sent, and we quote, may hold half a surrogate pair.
    headers = {**refusal.headers, "X-Request-Id": request_id}
    return Response(json.dumps(body), refusal.status, headers, "application/json")


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


def _told(problems: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """As many problems as an answer may hold."""
    told, room = [], MAX_PROBLEMS_BYTES
    for problem in problems:
        short = {name: _short(text) for name, text in problem.items()}
        room -= len(json.dumps(short))
        if room < 0:
            break
        told.append(short)
    return told


def refusal_of(error: Exception, request: Request) -> Refusal:
    """The exception as a refusal; what is in no table is a bug: logged, 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        faults = error.errors()
        return validation_refusal(faults, len(faults))
    if isinstance(error, HTTPException):
        kind = HTTP_TYPES.get(error.status_code, f"http_{error.status_code}")
        return Refusal(error.status_code, kind, str(error.detail), headers=error.headers or {})
    key = request.scope.get("state", {}).get("key")
    if isinstance(error, UnknownAdapter) and key is not None:
        error = error.among(key.may_use)
    found = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if found is None:
        log.error("unhandled", exc_info=error)
        return Refusal(500, "internal", "the server failed; this is a bug, please report it")
    refusal = Refusal(*found, str(error) or found[1])
    if isinstance(error, AdapterRejected):
        refusal.problems = [
            {"reason": p.reason, **({"tensor": p.tensor} if p.tensor else {})}
            for p in error.problems
        ]
    elif isinstance(error, InputRefused):
        where = f"inputs[{error.index}]"
        refusal.message = f"{where} {error.reason}"
        refusal.problems = [{"field": where, "reason": error.reason}]
    elif isinstance(error, UnknownAdapter):
        refusal.more = {"nearest": error.nearest}
    elif isinstance(error, QueueFull | QuotaExceeded):
        wait_s = error.retry_after_s
        refusal.headers = {
            "Retry-After": str(max(1, math.ceil(wait_s))),
            "retry-after-ms": str(max(1, math.ceil(wait_s * 1000))),
        }
    return refusal


def validation_refusal(faults: Sequence[Mapping[str, Any]], count: int) -> Refusal:
    """422 with the first of pydantic's `count` faults."""
    problems = [
        {"field": _where(f["loc"]), "reason": f["msg"].removeprefix("Value error, ")}
        for f in faults[:MAX_FAULTS]
    ]
    first = problems[0]
    more = {"problem_count": count} if count > len(problems) else {}
    message = f"{first['field']}: {first['reason']}"
    return Refusal(422, "validation", message, problems, more=more)


def _where(loc: tuple[int | str, ...]) -> str:
    """("body", "inputs", 3) -> inputs[3]."""
    parts = loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
    return text.lstrip(".") or str(loc[0] if loc else "body")
