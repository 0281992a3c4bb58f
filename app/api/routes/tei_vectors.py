"""text-embeddings-inference's calls of the encoder beside /embed: /embed_all, /similarity, and the
refusal of /embed_sparse.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from app.api.access import access
from app.api.answer import json_answer, ran_headers, states_answer, tei_headers
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne
from app.api.inputs import Inputs, Text, TextsBody
from app.api.serving import Served
from app.api.tei_errors import ERRORS, TEI
from app.inference.errors import NoHead
from app.inference.similarity import compare
from app.inference.states import token_states

router = APIRouter(tags=["text-embeddings-inference"])
PROMPT_NAME = "One of the adapter's prompts, or of the base's."


class EmbedAllBody(TextsBody):
    """TEI's body, of /embed_sparse too."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "I love this film."}]})

    inputs: Inputs
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


class EmbedSparseBody(EmbedAllBody):
    """The same; what it asks for is not served."""

    model_config = ConfigDict(json_schema_extra={"examples": []})


class SimilarityInputs(JsonBody):
    """A sentence and those that it is compared with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source_sentence: Text = Field(min_length=1)
    sentences: list[Annotated[Text, Field(min_length=1)]] = Field(min_length=1, fail_fast=True)


class SimilarityParameters(TextsBody):
    """How the sentences are read."""

    prompt_name: str | None = Field(None, description=PROMPT_NAME)


class SimilarityBody(JsonBody):
    """TEI's body."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"inputs": {"source_sentence": "My card is lost.", "sentences": ["A good film."]}}
            ]
        },
    )

    inputs: SimilarityInputs
    parameters: SimilarityParameters = Field(default_factory=SimilarityParameters)


def _answer(what: str, items: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "array", "items": items}
    return {200: {"description": what, "content": {"application/json": {"schema": schema}}}}


NUMBER = {"type": "number"}
STATES = {"type": "array", "items": {"type": "array", "items": NUMBER}}


@router.post(
    "/embed_all",
    response_class=Response,
    responses=_answer("For each input the state of each token.", STATES) | ERRORS,
    openapi_extra=documented_body(EmbedAllBody),
)
@access("any key", model=True, dialect=TEI)
async def embed_all(
    request: Request,
    body: Annotated[EmbedAllBody, body_of(EmbedAllBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The states of all tokens, special ones included, before any pooling."""
    runtime, texts = serving.runtime, body.as_texts(body.inputs.items)
    async with runtime.token_states:
        ran = await token_states(runtime, caller, texts, selection, body.prompt_name)
        headers = ran_headers(ran) | tei_headers(request, ran, texts)
        return await asyncio.to_thread(states_answer, ran.lines[0], headers)


@router.post(
    "/embed_sparse",
    response_class=Response,
    responses=ERRORS,
    openapi_extra=documented_body(EmbedSparseBody),
)
@access("any key", dialect=TEI)
async def embed_sparse(body: Annotated[EmbedSparseBody, body_of(EmbedSparseBody)]) -> Response:
    """Always refused: no adapter here has a head that gives sparse vectors."""
    raise NoHead(
        "sparse vectors need a masked language model's head (SPLADE), which no adapter here has: "
        "ask /embed",
        [],
    )


@router.post(
    "/similarity",
    response_class=Response,
    responses=_answer("Each sentence's cosine with the source.", NUMBER) | ERRORS,
    openapi_extra=documented_body(SimilarityBody),
)
@access("any key", model=True, dialect=TEI)
async def similarity(
    request: Request,
    body: Annotated[SimilarityBody, body_of(SimilarityBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The cosine of a sentence's vector with each of the others."""
    sentences = [body.inputs.source_sentence, *body.inputs.sentences]
    texts = body.parameters.as_texts(sentences)
    prompt_name = body.parameters.prompt_name
    compared = await compare(serving.runtime, caller, texts, selection, prompt_name)
    headers = ran_headers(compared.ran) | tei_headers(request, compared.ran, texts)
    return json_answer(compared.cosines, headers)
