"""Lists of whole texts: the documents that are ranked, the texts that are embedded."""

from __future__ import annotations

import json
from typing import Annotated, Any

import orjson
from pydantic import PlainValidator, WithJsonSchema

from app.api.inputs import whole_characters

Document = str | dict[str, Any]
TEXT = {"type": "string", "minLength": 1}
OBJECT = {"type": "object", "properties": {"text": TEXT}, "required": ["text"]}


def text_of(document: Document) -> str:
    """What is read of it."""
    return document if isinstance(document, str) else str(document["text"])


def read_documents(value: Any) -> list[Document]:
    """Strings, or objects whose `text` is one. Raises ValueError, with the place of the first wrong
    one.
    """
    return [_checked(item, i, _object_text(item)) for i, item in enumerate(_items(value))]


def read_texts(value: Any) -> list[str]:
    """Strings only. Raises ValueError, with the place of the first wrong one."""
    return [_checked(item, i, item) for i, item in enumerate(_items(value))]


def read_text_or_texts(value: Any) -> list[str]:
    """One string, or as read_texts(). Raises ValueError."""
    return read_texts([value] if isinstance(value, str) else value)


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("is not a list")
    if not value:
        raise ValueError("is an empty list")
    return value


def _object_text(item: Any) -> Any:
    return item.get("text") if isinstance(item, dict) else item


def _checked(item: Any, place: int, text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"[{place}] is not a text")
    if not text:
        raise ValueError(f"[{place}] is empty")
    whole_characters(text, f"[{place}] ")
    return item


def _listed(*items: dict[str, Any]) -> WithJsonSchema:
    schema = items[0] if len(items) == 1 else {"anyOf": list(items)}
    return WithJsonSchema({"type": "array", "minItems": 1, "items": schema})


Documents = Annotated[list[Document], PlainValidator(read_documents), _listed(TEXT, OBJECT)]
TextList = Annotated[list[str], PlainValidator(read_texts), _listed(TEXT)]
TextOrTexts = Annotated[
    list[str],
    PlainValidator(read_text_or_texts),
    WithJsonSchema({"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": TEXT}]}),
]


def given_back(document: Document) -> Any:
    """A document in an answer: a string as {"text"}, an object as it came."""
    if isinstance(document, str):
        return {"text": document}
    try:
        orjson.dumps(document)
    except orjson.JSONEncodeError:  # numbers beyond 64 bits, which Python's own writes
        return orjson.Fragment(json.dumps(document).encode())
    return document
