"""Errors as part of the interface: the one table exception -> status and stable type.

What an answer looks like is the route's dialect (dialect.py).
"""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.adapters.receiving.source import SourceForbidden
from app.adapters.refusals import AdapterRejected, UploadTooLarge
from app.adapters.sums import CannotCompose
from app.api.access import dialect_of
from app.api.for_log import reason_of
from app.api.refusal import Refusal, invalid, validation_refusal
from app.api.upload_body import SourceMalformed, UnsupportedMedia
from app.catalog.compositions import CompositionsFull
from app.catalog.install import PreconditionFailed
from app.catalog.merging import MergeMemoryFull, MergeNotShared
from app.catalog.pointer import OlderThanAsked
from app.catalog.registry import UnknownAdapter, UnknownVersion
from app.catalog.store import ChangeUnsure, StoreFull, StoreUnavailable
from app.catalog.trials import NoTrial
from app.engine.admission import QueueFull
from app.engine.failures import DeviceLost, ForwardFailed, NotFinite, OutOfMemory
from app.engine.queue import QueueClosed
from app.engine.tokenizer import InputRefused
from app.inference.errors import Ambiguous, Forbidden, Invalid, NoHead, TooManyInputs, WrongHead
from app.inference.quota import QuotaExceeded

log = logging.getLogger(__name__)

TABLE: dict[type[Exception], tuple[int, str]] = {
    Ambiguous: (400, "malformed"),
    SourceMalformed: (400, "malformed"),
    Forbidden: (403, "forbidden"),
    SourceForbidden: (403, "forbidden"),
    UnknownAdapter: (404, "adapter_not_found"),
    UnknownVersion: (404, "version_not_found"),
    NoTrial: (409, "no_trial"),
    MergeNotShared: (409, "merge_not_shared"),
    PreconditionFailed: (412, "precondition_failed"),
    OlderThanAsked: (412, "precondition_failed"),
    TooManyInputs: (413, "too_many_inputs"),
    UploadTooLarge: (413, "payload_too_large"),
    UnsupportedMedia: (415, "unsupported_media_type"),
    AdapterRejected: (422, "adapter_rejected"),
    CannotCompose: (422, "cannot_compose"),
    InputRefused: (422, "validation"),
    Invalid: (422, "validation"),
    NoHead: (422, "no_head"),
    NotFinite: (422, "not_finite"),
    QueueFull: (429, "overloaded"),
    CompositionsFull: (429, "overloaded"),
    QuotaExceeded: (429, "quota_exceeded"),
    ClientDisconnect: (499, "client_gone"),
    ForwardFailed: (500, "forward_failed"),
    OutOfMemory: (503, "out_of_memory"),
    QueueClosed: (503, "draining"),
    DeviceLost: (503, "device_lost"),
    StoreUnavailable: (503, "store_unavailable"),
    ChangeUnsure: (503, "change_unsure"),
    MergeMemoryFull: (507, "merge_memory_full"),
    StoreFull: (507, "store_full"),
}
HTTP_TYPES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    504: "deadline_exceeded",
}


def install_errors(app: FastAPI) -> None:
    """Every exception that a route may raise, as an answer."""

    async def answer(request: Request, error: Exception) -> Response:
        return _answer(request.scope, error)

    for kind in (*TABLE, Refusal, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


async def respond(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an error from outside of a route."""
    await _answer(scope, error)(scope, receive, send)


def _answer(scope: Scope, error: Exception) -> Response:
    state, refusal = scope.get("state", {}), refusal_of(error, scope)
    if "trace" in state:
        state["trace"].refusal = refusal.error_type
        state["reason"] = reason_of(error, refusal)
    return dialect_of(scope).answer(refusal, state.get("request_id", ""))


def refusal_of(error: Exception, scope: Scope) -> Refusal:
    """The exception as a refusal; what is in no table is a bug: logged, 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        faults = error.errors()
        return validation_refusal(faults, len(faults))
    if isinstance(error, HTTPException):
        kind = HTTP_TYPES.get(error.status_code, f"http_{error.status_code}")
        return Refusal(error.status_code, kind, str(error.detail), headers=error.headers or {})
    if isinstance(error, Invalid):
        cause = "wrong_head" if isinstance(error, WrongHead) else ""
        return invalid(error.name, error.reason, cause)
    if isinstance(error, InputRefused):
        where = f"{dialect_of(scope).inputs}[{error.index}]"
        return invalid(where, error.reason, error.cause)
    status = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if status is None:
        log.error("unhandled", exc_info=error)
        return Refusal(500, "internal", "the server failed; this is a bug, please report it")
    return _with_details(Refusal(*status, str(error) or status[1]), error, scope)


def _with_details(refusal: Refusal, error: Exception, scope: Scope) -> Refusal:
    """What an exception says beside its message."""
    if isinstance(error, AdapterRejected):
        refusal.problems = [
            {"reason": p.reason, **({"tensor": p.tensor} if p.tensor else {})}
            for p in error.problems
        ]
    elif isinstance(error, UnknownAdapter):
        key = scope.get("state", {}).get("key")
        visible = error if key is None else error.among(key.may_use)
        refusal.message, refusal.more = str(visible), {"nearest": visible.nearest}
    elif isinstance(error, ForwardFailed) and error.index is not None:
        refusal.message = f"{dialect_of(scope).inputs}[{error.index}]: {error}"
    elif isinstance(error, NoHead):
        refusal.more = {"adapters_with_head": list(error.adapters)}
    elif isinstance(error, QueueFull | CompositionsFull | QuotaExceeded):
        refusal.headers = retry_after(error.retry_after_s)
    return refusal


def retry_after(wait_s: float) -> dict[str, str]:
    """For HTTP's clients in whole seconds, for OpenAI's in milliseconds."""
    return {
        "Retry-After": str(max(1, math.ceil(wait_s))),
        "retry-after-ms": str(max(1, math.ceil(wait_s * 1000))),
    }
