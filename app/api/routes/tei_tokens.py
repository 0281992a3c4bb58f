"""TEI's view of the tokenizer: POST /tokenize, which vLLM's clients share, and POST /decode."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from app.api.access import access
from app.api.answer import json_answer
from app.api.body import JsonBody, Spoken, body_by, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne
from app.api.inputs import read_inputs
from app.api.openai_errors import OPENAI
from app.api.routes.vllm_tokens import TOKENS, PromptBody, tokenized_prompt
from app.api.serving import Served, Serving
from app.api.tei_errors import ERRORS, IDS, TEI
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.read import Texts
from app.inference.tokens import texts_of, tokens_of

router = APIRouter(tags=["text-embeddings-inference"])
T = TypeVar("T")


def _texts(value: Any) -> list[str]:
    return _all(str, value, "text")


def _id_lists(value: Any) -> list[list[int]]:
    return _all(list, value, "list of token ids")


def _all(kind: type[T], value: Any, name: str) -> list[T]:
    """One of them, or a list of them. Raises ValueError."""
    items = read_inputs(value).items
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise ValueError(f"[{i}] is no {name}")
    return items  # type: ignore[return-value]


def _one_or_more(schema: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]})


TEXT = {"type": "string", "minLength": 1}
ID_LIST = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class TokenizeBody(JsonBody):
    """TEI's body."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": "I love this film."}]},
    )

    inputs: Annotated[list[str], PlainValidator(_texts), _one_or_more(TEXT)]
    add_special_tokens: bool = Field(True, description="As the model reads them.")
    prompt_name: str | None = Field(None, description="One of the adapter's or base's prompts.")


class DecodeBody(JsonBody):
    """TEI's body."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"ids": [2, 5, 3]}]}
    )

    ids: Annotated[list[list[int]], PlainValidator(_id_lists), _one_or_more(ID_LIST)]
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")


TOKEN: dict[str, Any] = {
    "type": "object",
    "required": ["id", "text", "special", "start", "stop"],
    "properties": {
        "id": {"type": "integer"},
        "text": {"type": "string"},
        "special": {"type": "boolean"},
        "start": {"type": ["integer", "null"]},
        "stop": {"type": ["integer", "null"]},
    },
}


def _answer(what: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": what, "content": {"application/json": {"schema": schema}}}}


# As TEI's until the body is known.
EITHER = replace(TEI, schema={"anyOf": [TEI.schema, OPENAI.schema]})
TOKENIZED = _answer(
    "Each input's tokens; with vLLM's `prompt` its ids.",
    {"anyOf": [{"type": "array", "items": {"type": "array", "items": TOKEN}}, TOKENS]},
)
TEXTS = _answer("Each list's text.", {"type": "array", "items": {"type": "string"}})


@router.post(
    "/tokenize",
    response_class=Response,
    responses=TOKENIZED | EITHER.documented(400, 404, 413, 415, 422),
    openapi_extra=documented_body(TokenizeBody, PromptBody),
)
@access("any key", dialect=EITHER)
async def tokenize(
    body: Annotated[
        TokenizeBody | PromptBody,
        body_by(Spoken("prompt", PromptBody, OPENAI), Spoken("inputs", TokenizeBody, TEI)),
    ],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The tokens that the model would read, with their places in the text; nothing is cut off."""
    if isinstance(body, PromptBody):
        return await tokenized_prompt(body, selection, caller, serving)
    return await _tokenized(body, selection, caller, serving)


async def _tokenized(
    body: TokenizeBody, selection: Selection, caller: Caller, serving: Serving
) -> Response:
    rows = await tokens_of(
        serving.runtime,
        caller,
        Texts(body.inputs, shortened=body.shortened),
        selection,
        specials=body.add_special_tokens,
        prompt_name=body.prompt_name,
    )
    return json_answer(rows, {})  # orjson writes the Tokens themselves


@router.post(
    "/decode",
    response_class=Response,
    responses=TEXTS | ERRORS,
    openapi_extra=documented_body(DecodeBody),
)
@access("any key", dialect=IDS)
async def decode(
    body: Annotated[DecodeBody, body_of(DecodeBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The texts that lists of token ids stand for."""
    skip = body.skip_special_tokens
    texts = await texts_of(serving.runtime, caller, body.ids, selection, skip_specials=skip)
    return json_answer(texts, {})
