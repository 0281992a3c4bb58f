"""Cohere's shapes for vectors: POST /v2/embed and POST /v1/embed."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from app.api.access import access
from app.api.answer import embedded_headers, encoded, float_lists, json_answer
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.cohere_errors import COHERE
from app.api.documents import TextList
from app.api.refusal import invalid
from app.api.serving import Served, Serving
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.embed import Embedded, EmbedWish, embed
from app.inference.read import Texts

router = APIRouter(tags=["cohere"])
ERRORS = COHERE.documented(404, 413, 415, 422, 429, 503)
InputType = Literal["search_query", "search_document", "classification", "clustering"]
# What the prompt for such a text may be called; sentence-transformers' names are among them.
PURPOSES: dict[InputType | None, tuple[str, ...]] = {
    None: (),
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage", "corpus"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}


class CohereBody(JsonBody):
    """What both versions take; any other member is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: TextList
    embedding_types: list[Literal["float", "base64", "binary", "ubinary"]] | None = Field(
        None, min_length=1, description="int8 and uint8 need a calibration, which is not here."
    )
    truncate: Literal["NONE", "START", "END"] = Field(
        "END", description="Which end of a text that is too long is cut; NONE: it is refused."
    )
    max_tokens: int | None = Field(None, ge=1, description="No fewer than the model reads at all.")
    output_dimension: int | None = Field(None, ge=1, description="Keep only the first ones.")
    priority: Literal[0] = Field(0, description="The header X-Priority has this.")

    def as_texts(self, max_length: int) -> Texts:
        """The texts, to be read so. max_length: the most tokens that are read of anything.

        Raises Refusal.
        """
        if (self.max_tokens or max_length) < max_length:
            raise invalid(
                "max_tokens", f"is {self.max_tokens}; texts are cut to the model's {max_length}"
            )
        direction: Literal["left", "right"] = "left" if self.truncate == "START" else "right"
        return Texts(self.texts, self.truncate != "NONE", direction, self.shortened)


class CohereV1Body(CohereBody):
    """Without `embedding_types` the answer's embeddings are lists of numbers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["Where is my card?"]}]})

    model: str | None = Field(None, description="base-id, adapter or base-id:adapter.")
    input_type: InputType | None = Field(None, description="Chooses a prompt, if it has a name.")


class CohereV2Body(CohereBody):
    """The answer's embeddings are an object, with a member for each type."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "base", "input_type": "search_query", "texts": ["Where is my card?"]}
            ]
        }
    )

    model: str = Field(description="base-id, adapter or base-id:adapter, each also with @version.")
    input_type: InputType = Field(description="Chooses a prompt, if one has its name.")


EMBEDDED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Embeddings in Cohere's shape.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["id", "response_type", "embeddings", "texts", "meta"],
                },
                "example": {
                    "id": "embed-0f3e",
                    "response_type": "embeddings_by_type",
                    "embeddings": {"float": [[0.0123]]},
                    "texts": ["Where is my card?"],
                    "meta": {
                        "api_version": {"version": "2"},
                        "billed_units": {"input_tokens": 7},
                    },
                },
            }
        },
    }
}


@router.post(
    "/v1/embed",
    response_class=Response,
    responses=EMBEDDED | ERRORS,
    openapi_extra=documented_body(CohereV1Body),
)
@access("any key", model=True, dialect=COHERE)
async def embed_v1(
    body: Annotated[CohereV1Body, body_of(CohereV1Body)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Cohere's first embed call; `model` chooses the adapter."""
    embedded = await _embedded(serving, caller, body, selection)
    if body.embedding_types is None:
        floats = float_lists(embedded.ran.lines[0])
        return _answer(body, embedded, "1", "embeddings_floats", floats)
    return _answer(body, embedded, "1", "embeddings_by_type", _by_type(body, embedded))


@router.post(
    "/v2/embed",
    response_class=Response,
    responses=EMBEDDED | ERRORS,
    openapi_extra=documented_body(CohereV2Body),
)
@access("any key", model=True, dialect=COHERE)
async def embed_v2(
    body: Annotated[CohereV2Body, body_of(CohereV2Body)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Cohere's embed call; `model` chooses the adapter, `input_type` its prompt."""
    embedded = await _embedded(serving, caller, body, selection)
    return _answer(body, embedded, "2", "embeddings_by_type", _by_type(body, embedded))


async def _embedded(
    serving: Serving, caller: Caller, body: CohereV1Body | CohereV2Body, selection: Selection
) -> Embedded:
    runtime = serving.runtime
    texts = body.as_texts(runtime.engine.encoder.max_length)
    wish = EmbedWish(dimensions=body.output_dimension, purposes=PURPOSES[body.input_type])
    selection = with_model(runtime, selection, body.model)
    return await embed(runtime, caller, texts, selection, wish)


def _by_type(body: CohereBody, embedded: Embedded) -> dict[str, Any]:
    rows = embedded.ran.lines[0]
    return {kind: encoded(rows, kind) for kind in body.embedding_types or ["float"]}


def _answer(
    body: CohereBody, embedded: Embedded, version: str, kind: str, embeddings: Any
) -> Response:
    """texts: null where one was too long to be kept whole."""
    tokens = embedded.ran.token_count
    answer = {
        "id": f"embed-{uuid.uuid4()}",
        "response_type": kind,
        "embeddings": embeddings,
        "texts": None if body.shortened else body.texts,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": tokens},
        },
    }
    return json_answer(answer, embedded_headers(embedded))
