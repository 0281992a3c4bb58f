"""POST /embed and POST /classify; the latter is vLLM's, too, told by its `input`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from app.adapters.sentence import Pooling
from app.api.access import access
from app.api.answer import (
    OCTETS,
    accepts_octets,
    embedded_headers,
    encoded,
    json_answer,
    octets,
    ran_headers,
    tei_headers,
)
from app.api.body import Spoken, body_by, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import Selected
from app.api.dialect import NATIVE, documented
from app.api.inputs import Inputs, Prompt, TextsBody
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.routes.vllm import LISTED, ClassifyInputBody, classified_input
from app.api.serving import Served
from app.api.tei_errors import ERRORS as TEI_ERRORS
from app.api.tei_errors import TEI
from app.inference.choose import Choice, Selection
from app.inference.classify import LabelWish, classify
from app.inference.embed import EmbedWish, embed
from app.inference.words import Strategy

router = APIRouter(tags=["inference"])
ERRORS = documented(400, 404, 413, 415, 422, 429, 503)
RETURN_ADAPTERS = (
    'Answer {"answer": …, "adapters": [{"adapter", "version"}, …]}: the headers hold few.'
)
EITHER = replace(NATIVE, schema={"anyOf": [NATIVE.schema, OPENAI.schema]})  # by the body
PER_INPUT = "One adapter per input, in order; null: the base."


class InputsBody(TextsBody):
    """What /embed and /classify have in common."""

    inputs: Inputs
    adapters: list[str | None] | None = Field(None, description=PER_INPUT, fail_fast=True)
    return_adapters: bool = Field(False, description=RETURN_ADAPTERS)


class EmbedBody(InputsBody):
    """What is left out comes from the adapter, then from the base's own files."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": ["I love this film.", "How do I top up?"]}]}
    )

    normalize: bool | None = Field(None, description="Scale each embedding to length 1.")
    prompt: Prompt | None = Field(None, description="Put before each text.")
    prompt_name: str | None = Field(None, description="One of the base's own prompts, or a task.")
    task: str | None = Field(None, description="One of the tasks that /info lists.")
    pooling: Pooling | None = Field(None, description="How token states become one vector.")
    dimensions: int | None = Field(None, ge=1, description="Keep only the first ones.")
    encoding_format: Literal["float", "base64"] = "float"

    def wish(self) -> EmbedWish:
        """How the vectors are wanted."""
        return EmbedWish(
            self.normalize,
            self.pooling,
            self.dimensions,
            self.prompt,
            self.prompt_name,
            self.task,
        )


class ClassifyBody(InputsBody):
    """The activation is the adapter's: softmax, sigmoid for multi-label, none for regression."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "My card has not arrived.", "top_k": 3}]}
    )

    raw_scores: bool = Field(False, description="Logits, without the activation.")
    top_k: int | None = Field(None, ge=1, description="Only the best ones.")
    threshold: float | None = Field(
        None, allow_inf_nan=False, description="Only scores of at least this."
    )
    aggregation_strategy: Strategy = Field(
        "simple", description="How an adapter that labels tokens groups them, as in transformers."
    )

    def wish(self) -> LabelWish:
        """How the labels are wanted."""
        return LabelWish(self.raw_scores, self.top_k, self.threshold, self.aggregation_strategy)


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
        "tokens, its entities with their places. A list in: a list of those. `input` in: vLLM's.",
        "content": _content({"anyOf": [LABELS, {"type": "array", "items": LABELS}, LISTED]}),
    }
}


@router.post(
    "/embed",
    response_class=Response,
    responses=EMBEDDED | TEI_ERRORS,
    openapi_extra=documented_body(EmbedBody),
)
@access("any key", model=True, dialect=TEI)
async def embed_inputs(
    request: Request,
    body: Annotated[EmbedBody, body_of(EmbedBody)],
    selected: Selected,
    caller: Called,
    serving: Served,
) -> Response:
    """Embeddings, each input through the adapter that was chosen for it."""
    raw = accepts_octets(request.headers.get("accept", ""))
    if raw:
        _refuse_octets(body, selected.adapters)
    texts, selection = body.as_texts(body.inputs.items), Selection(selected.adapters, body.adapters)
    embedded = await embed(serving.runtime, caller, texts, selection, body.wish())
    headers = embedded_headers(embedded) | tei_headers(request, embedded.ran, texts)
    choice, lines = embedded.ran.choice, embedded.ran.lines
    if raw:
        return octets(lines[0], headers)
    answer = _shaped(choice, [encoded(rows, body.encoding_format) for rows in lines])
    if body.return_adapters:
        answer = _with_adapters(answer, choice, embedded.spaces)
    return json_answer(answer, headers)


@router.post(
    "/classify",
    response_class=Response,
    responses=CLASSIFIED | EITHER.documented(404, 413, 415, 422, 429, 503),
    openapi_extra=documented_body(ClassifyBody, ClassifyInputBody),
)
@access("any key", model=True, dialect=EITHER)
async def classify_inputs(
    request: Request,
    body: Annotated[
        ClassifyBody | ClassifyInputBody,
        body_by(Spoken("input", ClassifyInputBody, OPENAI), Spoken("inputs", ClassifyBody, NATIVE)),
    ],
    selected: Selected,
    caller: Called,
    serving: Served,
) -> Response:
    """Labels and scores from the heads that the chosen adapters bring along."""
    if isinstance(body, ClassifyInputBody):
        return await classified_input(request, body, selected, caller, serving)
    texts, selection = body.as_texts(body.inputs.items), Selection(selected.adapters, body.adapters)
    classified = await classify(serving.runtime, caller, texts, selection, body.wish())
    choice, answers = classified.ran.choice, classified.answers
    single = [line[0] for line in answers] if body.inputs.single else answers
    answer = _shaped(choice, single)
    if body.return_adapters:
        answer = _with_adapters(answer, choice)
    return json_answer(answer, ran_headers(classified.ran))


def _refuse_octets(body: EmbedBody, adapters: Sequence[str]) -> None:
    """Raises Refusal for what raw floats cannot carry."""
    if body.return_adapters:
        raise invalid("return_adapters", f"is asked for, which {OCTETS} cannot carry: ask for JSON")
    if len(adapters) > 1:
        raise invalid(
            "adapter", f"is given several times, which {OCTETS} cannot carry: ask for JSON"
        )


def _with_adapters(
    answer: Any, choice: Choice, spaces: Sequence[str] | None = None
) -> dict[str, Any]:
    """The answer beside every adapter that gave it, in the order of X-Adapter."""
    adapters: list[dict[str, str]] = [
        {"adapter": chosen.name, "version": chosen.version.digest} for chosen in choice.distinct
    ]
    for adapter, space in zip(adapters, spaces or [], strict=False):
        adapter["embedding_space"] = space
    return {"answer": answer, "adapters": adapters}


def _shaped(choice: Choice, answers: Sequence[Any]) -> Any:
    """One adapter's answer; of a fan-out an object of them, by their names as spelled."""
    if not choice.fan_out:
        return answers[0]
    return {line[0].spelled: answer for line, answer in zip(choice.lines, answers, strict=True)}
