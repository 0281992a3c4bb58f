"""text-embeddings-inference's shapes for classifying heads: POST /predict and POST /rerank."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from app.adapters.values import Scores
from app.api.access import access
from app.api.answer import json_answer
from app.api.body import body_of, documented_body
from app.api.choosing import ChosenByQuery, choose
from app.api.classifying import Labelling, adapter_of, labelled, refuse_unanswerable
from app.api.errors import documented, invalid
from app.api.inputs import InputList, Text, read_inputs
from app.api.reading import Texts
from app.api.running import run
from app.api.serving import Served
from app.engine.windows import Direction
from app.model.head import scores
from app.model.sequence import Want

router = APIRouter(tags=["text-embeddings-inference"])
ERRORS = documented(400, 404, 413, 415, 422, 429, 503)


def read_sequences(value: Any) -> InputList:
    """As TEI reads them: "a"; ["a", "b"] is one pair; [["a"], ["a", "b"]] are two inputs.

    Raises ValueError.
    """
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return InputList(read_inputs([value]).items, True)
    if isinstance(value, list):
        value = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in value]
    return read_inputs(value)


Sequences = Annotated[
    InputList,
    PlainValidator(read_sequences),
    WithJsonSchema(
        {
            "description": 'A text, a pair ["a", "b"], or a list of [text] and [text, pair].',
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1},
                        "minItems": 1,
                        "maxItems": 2,
                    },
                },
            ],
        }
    ),
]


class PredictBody(BaseModel):
    """TEI's body; the adapter comes from the query."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": [["Is it late?", "My card has not arrived."]]}]},
    )

    inputs: Sequences
    raw_scores: bool = Field(False, description="Logits, without the activation.")
    truncate: bool = Field(True, description="Cut what is too long; false: refuse it.")
    truncation_direction: Direction = Field("right", description="Which end is cut.")


class RerankBody(BaseModel):
    """TEI's body; the adapter comes from the query and has a head of one label."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"query": "Where is my card?", "texts": ["It is late.", "A good film."]}]
        },
    )

    query: Text = Field(min_length=1)
    texts: list[Text] = Field(min_length=1, fail_fast=True)
    raw_scores: bool = Field(False, description="The head's own numbers, without the sigmoid.")
    return_text: bool = Field(False, description="Each text beside its score.")
    truncate: bool = Field(True, description="Cut what is too long; false: refuse it.")
    truncation_direction: Direction = Field("right", description="Which end is cut.")


PREDICTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One input in: its labels, best first. A list in: a list of those.",
        "content": {"application/json": {"schema": {"type": "array"}}},
    }
}
RANKED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Every text's place and score, best first.",
        "content": {
            "application/json": {
                "schema": {"type": "array"},
                "example": [{"index": 0, "score": 0.98}],
            }
        },
    }
}


@router.post(
    "/predict",
    response_class=Response,
    responses=PREDICTED | ERRORS,
    openapi_extra=documented_body(PredictBody),
)
@access("any key", model=True)
async def predict(
    request: Request,
    body: Annotated[PredictBody, body_of(PredictBody)],
    query: ChosenByQuery,
    serving: Served,
) -> Response:
    """Labels for texts and pairs, in TEI's shapes; one adapter."""
    items = body.inputs.items
    _refuse_several(query.adapter)
    choice = await choose(request, serving, query.adapter, None, len(items))
    refuse_unanswerable(request, serving, choice, items)
    texts = Texts(items, body.truncate, body.truncation_direction)
    ran = await run(request, serving, choice, texts, lambda _: Want("logits"))
    found = await asyncio.to_thread(
        labelled, request, serving, choice, items, ran, Labelling(body.raw_scores)
    )
    return json_answer(found[0][0] if body.inputs.single else found[0], ran.headers)


@router.post(
    "/rerank",
    response_class=Response,
    responses=RANKED | ERRORS,
    openapi_extra=documented_body(RerankBody),
)
@access("any key", model=True)
async def rerank(
    request: Request,
    body: Annotated[RerankBody, body_of(RerankBody)],
    query: ChosenByQuery,
    serving: Served,
) -> Response:
    """The texts by how well each answers the query: one pair each, through a head of one label."""
    _refuse_several(query.adapter)
    choice = await choose(request, serving, query.adapter, None, len(body.texts))
    adapter = adapter_of(request, serving, choice.lines[0][0])
    if adapter.task != "classify" or len(adapter.labels) != 1:
        raise invalid("adapter", "does not rerank: its head has not exactly one label")
    if body.return_text and request.state.shortened:
        raise invalid("return_text", "is asked for beside a text that is too long to be given back")
    if not all(body.texts):
        raise invalid(f"texts[{body.texts.index('')}]", "is empty")
    pairs = [(body.query, text) for text in body.texts]
    texts = Texts(pairs, body.truncate, body.truncation_direction)
    ran = await run(request, serving, choice, texts, lambda _: Want("logits"))
    kind: Scores = "none" if body.raw_scores else "sigmoid"
    values = [float(scores(logits, kind)[0]) for logits in ran.lines[0]]
    best = sorted(range(len(values)), key=lambda i: -values[i])
    answer = [
        {"index": i, "score": values[i], **({"text": body.texts[i]} if body.return_text else {})}
        for i in best
    ]
    return json_answer(answer, ran.headers)


def _refuse_several(adapters: list[str]) -> None:
    if len(adapters) > 1:
        raise invalid("adapter", "is given several times; this route takes one")
