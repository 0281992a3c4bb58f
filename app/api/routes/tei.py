"""text-embeddings-inference's calls of heads: POST /predict, and its half of POST /rerank
(routes/rerank.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from app.adapters.values import Scores
from app.api.access import access
from app.api.answer import json_answer, ran_headers, tei_headers
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne
from app.api.document import documented_answer
from app.api.inputs import InputList, Text, TextsBody, read_inputs
from app.api.refusal import invalid
from app.api.serving import Served, Serving
from app.api.tei_errors import ERRORS, TEI
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.classify import LabelWish, classify, score

router = APIRouter(tags=["text-embeddings-inference"])


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


class PredictParameters(JsonBody):
    """What huggingface_hub's text_classification sends; it reads the answer one list deeper."""

    model_config = ConfigDict(extra="forbid", strict=True)

    function_to_apply: Scores | None = Field(None, description="Instead of the adapter's own.")
    top_k: int | None = Field(None, ge=1, description="Only the best ones.")


class PredictBody(TextsBody):
    """TEI's body, and huggingface_hub's."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": [["Is it late?", "My card has not arrived."]]}]}
    )

    inputs: Sequences
    raw_scores: bool = Field(False, description="Logits, without the activation.")
    parameters: PredictParameters | None = None

    def wish(self) -> LabelWish:
        """How the labels are wanted."""
        more = self.parameters or PredictParameters()
        return LabelWish(self.raw_scores, more.top_k, activation=more.function_to_apply)


class RerankBody(TextsBody):
    """TEI's body; the adapter has a head of one label."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "Where is my card?", "texts": ["It is late.", "A good film."]}]
        }
    )

    query: Text = Field(min_length=1)
    texts: list[Text] = Field(min_length=1, fail_fast=True)
    raw_scores: bool = Field(False, description="The head's own numbers, without the sigmoid.")
    return_text: bool = Field(False, description="Each text beside its score.")
    top_n: int | None = Field(
        None, ge=0, description="Only the best ones, as LiteLLM asks for; 0: all."
    )


class LabelScore(BaseModel):
    """One label of an input."""

    label: str
    score: float


PREDICTED = documented_answer(
    list[LabelScore] | list[list[LabelScore]],
    "One input in: its labels, best first. A list in: a list of those.",
    [{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}],
)
RANKING: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": {"type": "integer"}, "score": {"type": "number"}},
    },
    "example": [{"index": 0, "score": 0.98}],
}


@router.post(
    "/predict",
    response_class=Response,
    responses=PREDICTED | ERRORS,
    openapi_extra=documented_body(PredictBody),
)
@access("any key", model=True, dialect=TEI)
async def predict(
    request: Request,
    body: Annotated[PredictBody, body_of(PredictBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Labels for texts and pairs, in TEI's shapes; one adapter."""
    texts = body.as_texts(body.inputs.items)
    classified = await classify(serving.runtime, caller, texts, selection, body.wish())
    answers = classified.answers[0]
    flat = body.inputs.single and body.parameters is None
    headers = ran_headers(classified.ran) | tei_headers(request, classified.ran, texts)
    return json_answer(answers[0] if flat else answers, headers)


async def rerank(
    request: Request, body: RerankBody, selection: Selection, caller: Caller, serving: Serving
) -> Response:
    """The texts by how well each answers the query: one pair each, through a head of one label."""
    if body.return_text and body.shortened:
        raise invalid("return_text", "is asked for beside a text that is too long to be given back")
    if not all(body.texts):
        raise invalid(f"texts[{body.texts.index('')}]", "is empty", "empty")
    pairs = body.as_texts([(body.query, text) for text in body.texts])
    scored = await score(serving.runtime, caller, pairs, selection, raw_scores=body.raw_scores)
    answer = [
        {"index": i, "score": value, **({"text": body.texts[i]} if body.return_text else {})}
        for i, value in scored.best(body.top_n or None)
    ]
    headers = ran_headers(scored.ran) | tei_headers(request, scored.ran, pairs)
    return json_answer(answer, headers)
