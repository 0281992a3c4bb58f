"""Infinity's calls below /infinity: other servers read the same bodies and answer otherwise."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from app.adapters.report import Report
from app.api.access import access
from app.api.answer import embedded_headers, encoded, json_answer, ran_headers
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.documents import TextList, TextOrTexts
from app.api.infinity_errors import INFINITY
from app.api.inputs import Text
from app.api.refusal import invalid
from app.api.routes.health import readyz
from app.api.serving import Served
from app.inference.choose import Selection
from app.inference.classify import LabelWish, classify, score
from app.inference.embed import embed
from app.inference.read import Texts
from app.inference.run import Ran
from app.inference.runtime import Runtime

router = APIRouter(prefix="/infinity", tags=["infinity"])
UNNAMED = "default/not-specified"  # what its client sends where its user names no model
ERRORS = INFINITY.documented(404, 413, 415, 422, 429, 503)
DOCUMENTS = replace(INFINITY, inputs="documents")


class InfinityBody(JsonBody):
    """What its bodies have in common; any other member is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(
        UNNAMED, description=f"base-id, adapter or base-id:adapter; {UNNAMED}: none is named."
    )

    def chosen(self, runtime: Runtime, selection: Selection) -> Selection:
        """As with_model()."""
        return with_model(runtime, selection, None if self.model == UNNAMED else self.model)


class InfinityEmbeddingsBody(InfinityBody):
    """As Infinity's client sends it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["I love this film."]}]})

    input: TextOrTexts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int = Field(
        0, ge=0, description="Keep only the first ones, as they are in the whole vector; 0: all."
    )
    modality: Literal["text"] = Field("text", description="Nothing but texts is read.")
    user: str | None = Field(None, description="Not read.")


class InfinityClassifyBody(InfinityBody):
    """As Infinity's client sends it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": ["I love this film."], "model": "sentiment"}]}
    )

    input: TextList
    raw_scores: bool = Field(False, description="Logits, without the activation.")


class InfinityRerankBody(InfinityBody):
    """As Infinity's client sends it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "Where is my card?", "documents": ["It is late.", "A good film."]}
            ]
        }
    )

    query: Text = Field(min_length=1)
    documents: TextList
    top_n: int | None = Field(None, ge=1, description="Only the best ones.")
    return_documents: bool = Field(False, description="Each document beside its score.")
    raw_scores: bool = Field(False, description="The head's own numbers, without the sigmoid.")


def _answered(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for an answer that has the members of the example."""
    schema = {"type": "object", "required": sorted(example)}
    content = {"application/json": {"schema": schema, "example": example}}
    return {200: {"description": "In Infinity's shape.", "content": content}}


USAGE = {"prompt_tokens": 7, "total_tokens": 7}
META = {"model": "sentiment", "usage": USAGE, "id": "infinity-0f3e", "created": 1_700_000_000}
VECTOR = {"object": "embedding", "index": 0, "embedding": [0.0123]}
LABELS = [{"score": 0.98, "label": "positive"}, {"score": 0.02, "label": "negative"}]
RESULT = {"relevance_score": 0.98, "index": 0, "document": None}


@router.post(
    "/embeddings",
    response_class=Response,
    responses=_answered({"object": "list", "data": [VECTOR], **META}) | ERRORS,
    openapi_extra=documented_body(InfinityEmbeddingsBody),
)
@access("any key", model=True, dialect=INFINITY)
async def infinity_embeddings(
    body: Annotated[InfinityEmbeddingsBody, body_of(InfinityEmbeddingsBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Vectors; `model` chooses the adapter."""
    runtime = serving.runtime
    if body.dimensions > (width := runtime.engine.encoder.base.hidden):
        raise invalid("dimensions", f"is over the base's {width}")
    texts = Texts(body.input, shortened=body.shortened)
    embedded = await embed(runtime, caller, texts, body.chosen(runtime, selection))
    rows = [row[: body.dimensions or None] for row in embedded.ran.lines[0]]
    vectors = encoded(rows, body.encoding_format)
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    answer = {"object": "list", "data": data, **_meta(embedded.ran)}
    return json_answer(answer, embedded_headers(embedded))


@router.post(
    "/classify",
    response_class=Response,
    responses=_answered({"object": "classify", "data": [LABELS], **META}) | ERRORS,
    openapi_extra=documented_body(InfinityClassifyBody),
)
@access("any key", model=True, dialect=INFINITY)
async def classify_texts(
    body: Annotated[InfinityClassifyBody, body_of(InfinityClassifyBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Every label of each text, best first; `model` chooses the adapter."""
    runtime, wish = serving.runtime, LabelWish(body.raw_scores)
    texts = Texts(body.input, shortened=body.shortened)
    classified = await classify(runtime, caller, texts, body.chosen(runtime, selection), wish)
    if classified.ran.choice.distinct[0].version.adapter.task == "tokens":
        raise invalid("model", "labels words, which this shape has no place for: ask /classify")
    answer = {"object": "classify", "data": classified.answers[0], **_meta(classified.ran)}
    return json_answer(answer, ran_headers(classified.ran))


@router.post(
    "/rerank",
    response_class=Response,
    responses=_answered({"object": "rerank", "results": [RESULT], **META}) | ERRORS,
    openapi_extra=documented_body(InfinityRerankBody),
)
@access("any key", model=True, dialect=DOCUMENTS)
async def infinity_rerank(
    body: Annotated[InfinityRerankBody, body_of(InfinityRerankBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The documents by how well each answers the query; `model` chooses the adapter."""
    if body.return_documents and body.shortened:
        raise invalid("return_documents", "is asked for beside a text that is too long for it")
    runtime = serving.runtime
    pairs = Texts([(body.query, text) for text in body.documents], shortened=body.shortened)
    scored = await score(
        runtime, caller, pairs, body.chosen(runtime, selection), raw_scores=body.raw_scores
    )
    results = [
        {
            "relevance_score": value,
            "index": i,
            "document": body.documents[i] if body.return_documents else None,
        }
        for i, value in scored.best(body.top_n)
    ]
    answer = {"object": "rerank", "results": results, **_meta(scored.ran)}
    return json_answer(answer, ran_headers(scored.ran))


@router.get(
    "/models",
    response_class=Response,
    responses=_answered({"object": "list", "data": []}) | INFINITY.documented(),
)
@access("any key", dialect=INFINITY)
async def infinity_models(caller: Called, serving: Served) -> Response:
    """Every name that `model` may be, with what it can do."""
    runtime = serving.runtime
    names = dict(runtime.registry.names)

    def listed() -> Response:
        adapters = [names[name] for name in caller.usable(names)]
        data = [
            _model(runtime.engine.encoder.files.id, 0, ["embed"]),
            *(_model(a.name, a.created_unix, _capabilities(a.report)) for a in adapters),
        ]
        return json_answer({"object": "list", "data": data}, {})

    return await asyncio.to_thread(listed)


@router.get(
    "/health",
    response_class=Response,
    responses=_answered({"unix": 1_700_000_000.5}) | INFINITY.documented(503),
)
@access("nothing", probe=True, dialect=INFINITY)
async def infinity_health(caller: Called, serving: Served) -> Response:
    """As /readyz, with the time in place of what it tells."""
    await readyz(caller, serving)
    return json_answer({"unix": time.time()}, {})


def _capabilities(report: Report) -> list[str]:
    labels = ["classify"] if report.has_head and report.task == "classify" else []
    return ["embed", *labels, *(["rerank"] if report.ranks else [])]


def _model(name: str, created: int, capabilities: list[str]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "owned_by": "infinity",
        "created": created,
        "backend": "torch",
        "capabilities": capabilities,
        "stats": {},
    }


def _meta(ran: Ran) -> dict[str, Any]:
    """What all answers have."""
    tokens = ran.token_count
    return {
        "model": ran.choice.distinct[0].spelled,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": f"infinity-{uuid.uuid4()}",
        "created": int(time.time()),
    }
