"""The `inputs` of a body: a text, texts, token ids, lists of ids, or [text, pair] pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.adapters.sentence import MAX_PROMPT_LENGTH
from app.api.body import JsonBody
from app.engine.tokenizer import Input
from app.engine.windows import Direction
from app.inference.read import Texts

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PAIR = {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}


@dataclass(frozen=True)
class InputList:
    """single: one text, or one list of ids, was sent bare."""

    items: list[Input]
    single: bool


def read_inputs(value: Any) -> InputList:
    """Raises ValueError, naming the first input that is wrong by its place."""
    if isinstance(value, str):
        return InputList([_text(value, "")], True)
    if not isinstance(value, list):
        raise ValueError("is neither a string nor a list")
    if not value:
        raise _empty("", "is an empty list")
    if _is_id(value[0]):
        return InputList([_ids(value, "")], True)
    return InputList([_one(item, f"[{i}] ") for i, item in enumerate(value)], False)


def _one(item: Any, at: str) -> Input:
    if isinstance(item, str):
        return _text(item, at)
    if not isinstance(item, list):
        raise ValueError(f"{at}is not a string, a list of token ids or a [text, pair] pair")
    if not item:
        raise _empty(at)
    if isinstance(item[0], str):
        if len(item) != 2 or not isinstance(item[1], str):
            raise ValueError(f"{at}is not a pair of two strings")
        return _text(item[0], at), _text(item[1], at)
    return _ids(item, at)


def _empty(at: str, reason: str = "is empty") -> PydanticCustomError:
    return PydanticCustomError("empty", "{reason}", {"reason": at + reason})


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(items: list[Any], at: str) -> list[int]:
    if not all(_is_id(item) for item in items):
        raise ValueError(f"{at}is not a list of token ids")
    return items


def _text(text: str, at: str) -> str:
    if not text:
        raise _empty(at)
    return whole_characters(text, at)


def whole_characters(text: str, at: str = "") -> str:
    """JSON can spell half of a surrogate pair, which no tokenizer takes. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{at}holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]
Prompt = Annotated[
    str, Field(max_length=MAX_PROMPT_LENGTH), AfterValidator(whole_characters)
]  # in this order, so that its length is one of characters
Inputs = Annotated[
    InputList,
    PlainValidator(read_inputs),
    WithJsonSchema(
        {
            "description": "A text, a list of texts, token ids, a list of lists of token ids, "
            "or a list of [text, pair] pairs.",
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
                {"type": "array", "items": _PAIR, "minItems": 1},
            ],
        }
    ),
]


def _lower(value: Any) -> Any:
    return value.lower() if value in ("Left", "Right") else value


class TextsBody(JsonBody):
    """What every body of texts may say of how they are read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    truncate: bool = Field(True, description="Cut what is too long; false: refuse it.")
    truncation_direction: Annotated[Direction, BeforeValidator(_lower)] = Field(
        "right", description="Which end is cut; also spelled Left or Right."
    )

    def as_texts(self, items: Sequence[Input]) -> Texts:
        """The items, to be read so."""
        return Texts(items, self.truncate, self.truncation_direction, self.shortened)
