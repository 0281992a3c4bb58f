"""How OpenAI's clients read an error: its types, codes and statuses. Others speak so, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import SCHEMA, Dialect
from app.api.refusal import Refusal

INVALID = "invalid_request_error"
CODES: dict[str, tuple[str, str]] = {  # our error type -> OpenAI's type and code
    "adapter_not_found": (INVALID, "model_not_found"),
    "version_not_found": (INVALID, "model_not_found"),
    "unauthenticated": (INVALID, "invalid_api_key"),
    "forbidden": (INVALID, "insufficient_permissions"),
    "validation": (INVALID, "invalid_value"),
    "too_many_inputs": (INVALID, "array_above_max_length"),
    "overloaded": ("requests", "rate_limit_exceeded"),
    "quota_exceeded": ("tokens", "rate_limit_exceeded"),
}
# OpenAI refuses with 400 what a client can mend.
STATUSES = {
    "validation": 400,
    "too_many_inputs": 400,
    "no_head": 400,
    "adapter_rejected": 400,
    "cannot_compose": 400,
}


def _error(refusal: Refusal, members: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's error object, with our own members beside it."""
    other = ("server_error" if refusal.status >= 500 else INVALID, refusal.error_type)
    kind, code = CODES.get(refusal.error_type, other)
    named = next((p["field"] for p in refusal.problems if "field" in p), None)
    param = "model" if code == "model_not_found" else named
    error = {"message": members["error"], "type": kind, "param": param, "code": code}
    return {**members, "error": error}


_TEXT = {"type": "string"}
_OR_NULL = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {"message": _TEXT, "type": _TEXT, "param": _OR_NULL, "code": _OR_NULL},
}
OPENAI = Dialect(
    _error,
    {**SCHEMA, "title": "OpenAIError", "properties": {**SCHEMA["properties"], "error": ERROR}},
    STATUSES,
    inputs="input",
)
DOCUMENTS = replace(OPENAI, inputs="documents")  # of those that rerank
