"""How Infinity's client reads an error: with 422 FastAPI's `detail`, else OpenAI's object."""

from __future__ import annotations

from typing import Any

from app.api.dialect import Dialect
from app.api.openai_errors import OPENAI
from app.api.refusal import Refusal

STATUSES = {
    "adapter_not_found": 400,
    "version_not_found": 400,
    "no_head": 400,
    "wrong_head": 400,
    "cannot_compose": 400,
}
DETAIL = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["loc", "msg", "type"],
        "properties": {
            "loc": {"type": "array", "items": {"type": "string"}},
            "msg": {"type": "string"},
            "type": {"type": "string"},
        },
    },
}


def _error(refusal: Refusal, members: dict[str, Any]) -> dict[str, Any]:
    answer = OPENAI.shape(refusal, members)
    if refusal.error_type == "validation":
        answer["detail"] = [
            {"loc": ["body", p.get("field", "")], "msg": p["reason"], "type": "value_error"}
            for p in members.get("problems", [])
        ]
    return answer


INFINITY = Dialect(
    _error,
    {
        **OPENAI.schema,
        "title": "InfinityError",
        "properties": {**OPENAI.schema["properties"], "detail": DETAIL},
    },
    STATUSES,
    inputs="input",
)
