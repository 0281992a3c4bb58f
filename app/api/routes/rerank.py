"""Documents by how well they answer a query, in Cohere's (v1, v2), Jina's, vLLM's and LiteLLM's
shapes; and /rerank, which text-embeddings-inference's clients share with them.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from app.api.access import access
from app.api.answer import json_answer, ran_headers
from app.api.body import Spoken, body_by, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.cohere_errors import DOCUMENTS
from app.api.rerank_body import DocumentsBody
from app.api.routes import tei
from app.api.serving import Served, Serving
from app.api.tei_errors import TEXTS
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.classify import score

router = APIRouter(tags=["rerank"])
STATUSES = (404, 413, 415, 422, 429, 503)
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "model", "results", "usage", "meta"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "relevance_score"],
                "properties": {
                    "index": {"type": "integer"},
                    "relevance_score": {"type": "number"},
                    "document": {"type": "object"},
                },
            },
        },
        "usage": {"type": "object"},
        "meta": {"type": "object"},
    },
    "example": {
        "id": "rerank-0f3e",
        "model": "reranker",
        "results": [{"index": 0, "relevance_score": 0.98, "document": {"text": "It is late."}}],
        "usage": {"prompt_tokens": 26, "total_tokens": 26},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    },
}
DESCRIPTION = "The best documents first, each with its place in the body."


def _documented(answer: Any, error: Any) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of such schemas."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "Error", "content": {"application/json": {"schema": error}}}
        for status in (*STATUSES, 400, 401, 403, 424)
    }
    answered = {"description": DESCRIPTION, "content": {"application/json": {"schema": answer}}}
    return {200: answered, **errors}


RANKED = _documented(ANSWER, dict(DOCUMENTS.schema))
EITHER = _documented(
    {"anyOf": [ANSWER, tei.RANKING]}, {"anyOf": [dict(DOCUMENTS.schema), dict(TEXTS.schema)]}
)


@router.post(
    "/rerank",
    response_class=Response,
    responses=EITHER,
    openapi_extra=documented_body(tei.RerankBody, DocumentsBody),
)
@access("any key", model=True, dialect=TEXTS)
async def rerank_either(
    request: Request,
    body: Annotated[
        DocumentsBody | tei.RerankBody,
        body_by(
            Spoken("documents", DocumentsBody, DOCUMENTS),
            Spoken("texts", tei.RerankBody, TEXTS),
        ),
    ],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """`documents` as below; `texts` as text-embeddings-inference has it."""
    if isinstance(body, DocumentsBody):
        return await ranked(serving, caller, body, selection)
    return await tei.rerank(request, body, selection, caller, serving)


@router.post(
    "/v1/rerank",
    response_class=Response,
    responses=RANKED,
    openapi_extra=documented_body(DocumentsBody),
)
@router.post(
    "/v2/rerank",
    response_class=Response,
    responses=RANKED,
    openapi_extra=documented_body(DocumentsBody),
)
@access("any key", model=True, dialect=DOCUMENTS)
async def rerank(
    request: Request,
    body: Annotated[DocumentsBody, body_of(DocumentsBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Documents by how well each answers the query: a pair each, through a head of one label."""
    version = "2" if "/v2/" in request.url.path else "1"
    return await ranked(serving, caller, body, selection, version)


async def ranked(
    serving: Serving,
    caller: Caller,
    body: DocumentsBody,
    selection: Selection,
    api_version: str = "1",
) -> Response:
    """The answer that all of them read. api_version: of Cohere's."""
    runtime = serving.runtime
    selection = with_model(runtime, selection, body.model)
    pairs = body.as_pairs(runtime.engine.encoder.max_length)
    scored = await score(runtime, caller, pairs, selection, raw_scores=body.raw)
    return json_answer(body.answer(scored, api_version), ran_headers(scored.ran))
