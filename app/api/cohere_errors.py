"""How clients that rerank read an error: Cohere's its `message`, Jina's its `detail`, vLLM's as
OpenAI's do. One answer has all three.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import Dialect
from app.api.openai_errors import OPENAI, STATUSES
from app.api.refusal import Refusal

_TEXT = {"type": "string", "description": "As error.message."}


def _error(refusal: Refusal, members: dict[str, Any]) -> dict[str, Any]:
    text = members["error"]
    return {"message": text, "detail": text, **OPENAI.shape(refusal, members)}


COHERE = Dialect(
    _error,
    {
        **OPENAI.schema,
        "title": "CohereError",
        "required": [*OPENAI.schema["required"], "message"],
        "properties": {**OPENAI.schema["properties"], "message": _TEXT, "detail": _TEXT},
    },
    STATUSES,
    inputs="texts",
)
DOCUMENTS = replace(COHERE, inputs="documents")  # of those that rerank
