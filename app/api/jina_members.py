"""What Jina's embeddings call has beside OpenAI's members: honoured, or refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.api.answer import Encoding
from app.api.inputs import Inputs, TextsBody


def _without_objects(value: Any) -> Any:
    """Jina's {"text": "…"} is that text; an object of anything else stays, and is refused."""
    if not isinstance(value, list):
        return value
    return [
        item["text"] if isinstance(item, dict) and list(item) == ["text"] else item
        for item in value
    ]


InputsOrObjects = Annotated[Inputs, BeforeValidator(_without_objects)]


class JinaMembers(TextsBody):
    """Of /v1/embeddings."""

    normalized: bool | None = Field(None, description="As normalize.")
    embedding_type: Encoding | None = Field(None, description="Instead of encoding_format.")
    late_chunking: Literal[False] = Field(False, description="Each text is embedded by itself.")
