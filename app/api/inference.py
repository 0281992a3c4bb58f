"""POST /embed and POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.config.sentence import Pooling
from app.api.access import access
from app.api.answer import (
    OCTETS,
    accepts_octets,
    base64_strings,
    float_lists,
    header_list,
    json_answer,
    octets,
)
from app.api.body import body_of, documented_body
from app.api.choosing import Choice, Chosen, ChosenByQuery, choose
from app.api.classifying import Labelling, labelled, refuse_unanswerable
from app.api.embedding import Wish, prompts, spaces, wants
from app.api.errors import documented, invalid
from app.api.inputs import Inputs, Prompt
from app.api.reading import Texts
from app.api.running import run
from app.api.serving import Served
from app.engine.windows import Direction
from app.inference.words import Strategy
from app.model.sequence import Want

router = APIRouter(tags=["inference"])
ERRORS = documented(400, 404, 413, 415, 422, 429, 503)
RETURN_ADAPTERS = (
    'Answer {"answer": …, "adapters": [{"adapter", "version"}, …]}: the headers hold few.'
)
PER_INPUT = "One adapter per input, in order; null: the base."


class EmbedBody(BaseModel):
    """What is left out comes from the adapter, then from the base's own files."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": ["I love this film.", "How do I top up?"]}]},
    )

    inputs: Inputs
    adapters: list[str | None] | None = Field(None, description=PER_INPUT, fail_fast=True)
    normalize: bool | None = Field(None, description="Scale each embedding to length 1.")
    truncate: bool = Field(True, description="Cut what is too long; false: refuse it.")
    truncation_direction: Direction = Field("right", description="Which end is cut.")
    prompt: Prompt | None = Field(None, description="Put before each text.")
    prompt_name: str | None = Field(None, description="One of the base's own prompts.")
    pooling: Pooling | None = Field(None, description="How token states become one vector.")
    dimensions: int | None = Field(None, ge=1, description="Keep only the first ones.")
    encoding_format: Literal["float", "base64"] = "float"
    return_adapters: bool = Field(False, description=RETURN_ADAPTERS)


class ClassifyBody(BaseModel):
    """The activation is the adapter's: softmax, sigmoid for multi-label, none for regression."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": "My card has not arrived.", "top_k": 3}]},
    )

    inputs: Inputs
    adapters: list[str | None] | None = Field(None, description=PER_INPUT, fail_fast=True)
    truncate: bool = Field(True, description="Cut what is too long; false: refuse it.")
    truncation_direction: Direction = Field("right", description="Which end is cut.")
    raw_scores: bool = Field(False, description="Logits, without the activation.")
    top_k: int | None = Field(None, ge=1, description="Only the best ones.")
    threshold: float | None = Field(
        None, allow_inf_nan=False, description="Only scores of at least this."
    )
    aggregation_strategy: Strategy = Field(
        "simple", description="How an adapter that labels tokens groups them, as in transformers."
    )
    return_adapters: bool = Field(False, description=RETURN_ADAPTERS)


VECTORS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "number"}},
    "example": [[0.0123, -0.0456]],
}
LABELS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "score": {"type": "number"},
            "entity_group": {"type": "string"},
            "word": {"type": "string"},
            "start": {"type": "integer"},
            "end": {"type": "integer"},
        },
        "required": ["score"],
    },
    "example": [{"label": "card_arrival", "score": 0.98}],
}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    """An answer of one adapter, or an object of those in a fan-out."""
    fan_out = {"type": "object", "additionalProperties": schema}
    return {"application/json": {"schema": {"anyOf": [schema, fan_out]}}}


EMBEDDED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Always a list of lists; base64 strings where asked for.",
        "content": _content({"anyOf": [VECTORS, {"type": "array", "items": {"type": "string"}}]})
        | {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}
CLASSIFIED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One text in: its labels, best first; or, from an adapter that labels "
        "tokens, its entities with their places. A list in: a list of those.",
        "content": _content({"anyOf": [LABELS, {"type": "array", "items": LABELS}]}),
    }
}


@router.post(
    "/embed",
    response_class=Response,
    responses=EMBEDDED | ERRORS,
    openapi_extra=documented_body(EmbedBody),
)
@access("any key", model=True)
async def embed(
    request: Request,
    body: Annotated[EmbedBody, body_of(EmbedBody)],
    query: ChosenByQuery,
    serving: Served,
) -> Response:
    """Embeddings, each input through the adapter that was chosen for it."""
    choice = await choose(request, serving, query.adapter, body.adapters, len(body.inputs.items))
    raw = accepts_octets(request.headers.get("accept", ""))
    if raw and body.return_adapters:
        raise invalid("return_adapters", f"is asked for, which {OCTETS} cannot carry: ask for JSON")
    if raw and choice.fan_out:
        raise invalid(
            "adapter", f"is given several times, which {OCTETS} cannot carry: ask for JSON"
        )
    wish = Wish(body.normalize, body.pooling, body.dimensions, body.prompt, body.prompt_name)
    items = body.inputs.items
    prompt = prompts(serving, wish, items, choice)
    texts = Texts(items, body.truncate, body.truncation_direction, prompt)
    ran = await run(request, serving, choice, texts, wants(serving, wish, choice))
    found = spaces(serving, wish, choice)
    headers = ran.headers | {"X-Embedding-Space": header_list(found)}
    if raw:
        return octets(ran.lines[0], headers)
    encode = base64_strings if body.encoding_format == "base64" else float_lists
    answers = [encode(rows) for rows in ran.lines]
    answer = _shaped(choice.fan_out, choice.lines, answers)
    return json_answer(_told(answer, choice, found) if body.return_adapters else answer, headers)


@router.post(
    "/classify",
    response_class=Response,
    responses=CLASSIFIED | ERRORS,
    openapi_extra=documented_body(ClassifyBody),
)
@access("any key", model=True)
async def classify(
    request: Request,
    body: Annotated[ClassifyBody, body_of(ClassifyBody)],
    query: ChosenByQuery,
    serving: Served,
) -> Response:
    """Labels and scores from the heads that the chosen adapters bring along."""
    choice = await choose(request, serving, query.adapter, body.adapters, len(body.inputs.items))
    items = body.inputs.items
    refuse_unanswerable(request, serving, choice, items)
    texts = Texts(items, body.truncate, body.truncation_direction)
    ran = await run(request, serving, choice, texts, lambda _: Want("logits"))
    how = Labelling(body.raw_scores, body.top_k, body.threshold, body.aggregation_strategy)
    answers = await asyncio.to_thread(labelled, request, serving, choice, items, ran, how)
    if body.inputs.single:
        answers = [line[0] for line in answers]
    answer = _shaped(choice.fan_out, choice.lines, answers)
    return json_answer(_told(answer, choice) if body.return_adapters else answer, ran.headers)


def _told(answer: Any, choice: Choice, spaces: Sequence[str] | None = None) -> dict[str, Any]:
    """The answer beside every adapter that gave it, in the order of X-Adapter."""
    adapters: list[dict[str, str]] = [
        {"adapter": chosen.name, "version": chosen.digest} for chosen in choice.distinct
    ]
    for adapter, space in zip(adapters, spaces or [], strict=False):
        adapter["embedding_space"] = space
    return {"answer": answer, "adapters": adapters}


def _shaped(fan_out: bool, lines: list[list[Chosen]], answers: list[Any]) -> Any:
    if not fan_out:
        return answers[0]
    return {line[0].spelled: answer for line, answer in zip(lines, answers, strict=True)}
