"""How TEI's clients read an error: its statuses and types, which real servers spell with a capital
letter, as their document's schema does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import SCHEMA, Dialect
from app.api.refusal import Refusal

# Our error type, or what it is more closely -> TEI's. What TEI does not know keeps our own.
TYPES = {
    "empty": "Empty",
    "malformed": "Validation",
    "validation": "Validation",
    "too_long": "Validation",
    "too_many_inputs": "Validation",
    "payload_too_large": "Validation",
    "input": "Tokenizer",
    "no_head": "Backend",
    "wrong_head": "Backend",
    "not_finite": "Backend",
    "overloaded": "Overloaded",
    "quota_exceeded": "Overloaded",
    "not_ready": "Unhealthy",
    "draining": "Unhealthy",
}
STATUSES = {"empty": 400, "too_long": 413, "no_head": 424, "wrong_head": 424, "not_finite": 424}


def _error(refusal: Refusal, members: dict[str, Any]) -> dict[str, Any]:
    """TEI's two members beside ours; our error type is `code`."""
    kind = refusal.look_up(TYPES, refusal.error_type)
    return {**members, "error_type": kind, "code": refusal.error_type}


_TYPE = {"type": "string", "description": "TEI's, where TEI has this error; else as `code`."}
_CODE = {"type": "string", "description": "Ours, stable; branch on this."}
TEI = Dialect(
    _error,
    {
        **SCHEMA,
        "title": "TEIError",
        "required": [*SCHEMA["required"], "code"],
        "properties": {**SCHEMA["properties"], "error_type": _TYPE, "code": _CODE},
    },
    STATUSES,
)
TEXTS = replace(TEI, inputs="texts")  # of those that rerank
IDS = replace(TEI, inputs="ids")  # that are decoded
ERRORS = TEI.documented(400, 404, 413, 415, 422, 424, 429, 503)
