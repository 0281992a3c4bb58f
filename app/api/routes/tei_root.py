"""POST / and POST /invocations: one address for every body of TEI's, and OpenAI's.

Which call it is says the body. One of nothing but `inputs` asks for vectors at TEI's root, where
embedding clients send it; in SageMaker's and Vertex's runtime, whose clients have no other path,
for what the adapter is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from app.api.access import access
from app.api.answer import OCTETS, accepts_octets
from app.api.body import JsonBody, body_of, checked, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne
from app.api.cohere_errors import DOCUMENTS
from app.api.dialect import Dialect
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.rerank_body import DocumentsBody
from app.api.routes.inference import EmbedBody, embed_inputs
from app.api.routes.openai import OpenAIEmbeddingBody, embeddings
from app.api.routes.rerank import ranked
from app.api.routes.tei import PredictBody, RerankBody, predict, rerank
from app.api.routes.tei_vectors import SimilarityBody, similarity
from app.api.serving import Served, Serving
from app.api.tei_errors import TEI, TEXTS
from app.inference.caller import Caller
from app.inference.choose import BASE, Selection, resolve
from app.inference.errors import TooManyInputs
from app.inference.kinds import Kind, kind_of

router = APIRouter(tags=["text-embeddings-inference"])
# As TEI's until the body is known; OpenAI's for OpenAI's.
EITHER = replace(TEI, schema={"anyOf": [TEI.schema, OPENAI.schema, DOCUMENTS.schema]})
ERRORS = EITHER.documented(400, 404, 413, 415, 422, 424, 429, 503)
ANY: dict[int | str, dict[str, Any]] = {
    200: {"description": "As the call answers.", "content": {"application/json": {"schema": {}}}}
}


class AnyBody(JsonBody):
    """Its members, not checked yet."""

    model_config = ConfigDict(extra="allow")

    @property
    def members(self) -> dict[str, Any]:
        """By name, without those that are null."""
        return self.model_extra or {}


@dataclass(frozen=True)
class Call:
    """A body, how its call answers it, and how its clients read errors."""

    model: type[JsonBody]
    answer: Callable[[Request, Any, Selection, Caller, Serving], Awaitable[Response]]
    dialect: Dialect = TEI


async def _embeddings(
    _: Request, body: Any, selection: Selection, caller: Caller, serving: Serving
) -> Response:
    return await embeddings(body, selection, caller, serving)


async def _ranked(
    _: Request, body: Any, selection: Selection, caller: Caller, serving: Serving
) -> Response:
    return await ranked(serving, caller, body, selection)


EMBED = Call(EmbedBody, embed_inputs)
PREDICT = Call(PredictBody, predict)
SIMILARITY = Call(SimilarityBody, similarity)
BY_MEMBER = {  # a body with this member says itself which call it is
    "input": Call(OpenAIEmbeddingBody, _embeddings, OPENAI),
    "documents": Call(DocumentsBody, _ranked, DOCUMENTS),
    "query": Call(RerankBody, rerank, TEXTS),
}
BY_KIND: dict[Kind, Call] = {"embedding": EMBED, "classifier": PREDICT, "reranker": PREDICT}
AT_ONCE = 16  # instances of a request that run: 2,048 together kept the event loop for seconds
VECTORS_ONLY = EmbedBody.model_fields.keys() - PredictBody.model_fields.keys()
LABELS_ONLY = PredictBody.model_fields.keys() - EmbedBody.model_fields.keys()
BODIES = documented_body(
    EmbedBody, PredictBody, RerankBody, SimilarityBody, OpenAIEmbeddingBody, DocumentsBody
)


@router.post("/", response_class=Response, responses=ANY | ERRORS, openapi_extra=BODIES)
@access("any key", model=True, dialect=EITHER)
async def any_call(
    request: Request,
    body: Annotated[AnyBody, body_of(AnyBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Embed, predict, rerank or compare, as the body says; of bare inputs their vectors."""
    return await _answered(request, body, EMBED, selection, caller, serving)


@router.post("/invocations", response_class=Response, responses=ANY | ERRORS, openapi_extra=BODIES)
@access("any key", model=True, dialect=EITHER)
async def invocations(
    request: Request,
    body: Annotated[AnyBody, body_of(AnyBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The same in SageMaker's and Vertex's runtime; of bare inputs what the adapter is for."""
    name = selection.adapters[0] if selection.adapters else BASE
    chosen = await resolve(serving.runtime, caller, name)
    bare = BY_KIND[kind_of(chosen.version.adapter)]
    return await _answered(request, body, bare, selection, caller, serving)


async def _answered(
    request: Request,
    body: AnyBody,
    bare: Call,
    selection: Selection,
    caller: Caller,
    serving: Serving,
) -> Response:
    """bare: the call for a body of nothing but `inputs`."""

    several = "instances" in body.members
    bodies: list[Any] = [body.members]
    if several:
        bodies = _instances(request, body.members["instances"], serving.runtime.max_inputs)
    calls = [_call(one, bare) for one in bodies]
    if not several:
        request.state.dialect = calls[0].dialect

    def read() -> list[JsonBody]:
        pairs = zip(calls, bodies, strict=True)
        return [checked(call.model, one, shortened=body.shortened) for call, one in pairs]

    typed = await asyncio.to_thread(read)
    turn = asyncio.Semaphore(AT_ONCE)

    async def answer(call: Call, one: JsonBody) -> Response:
        async with turn:
            return await call.answer(request, one, selection, caller, serving)

    if not several:
        return await answer(calls[0], typed[0])
    try:
        async with asyncio.TaskGroup() as group:
            pairs = zip(calls, typed, strict=True)
            tasks = [group.create_task(answer(call, one)) for call, one in pairs]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    predictions = b",".join(bytes(task.result().body) for task in tasks)
    headers = {"X-Adapter": tasks[0].result().headers["x-adapter"]}
    return Response(b'{"predictions":[' + predictions + b"]}", 200, headers, "application/json")


def _instances(request: Request, value: Any, most: int) -> list[Any]:
    """Vertex's: several bodies in one. Raises Refusal, TooManyInputs."""
    if not isinstance(value, list) or not value:
        raise invalid("instances", "is not a list of bodies", "empty" if value == [] else "")
    if len(value) > most:
        raise TooManyInputs(f"instances has {len(value)} bodies, over the {most} of one request")
    if accepts_octets(request.headers.get("accept", "")):
        raise invalid("instances", f"is sent, which {OCTETS} cannot carry: ask for JSON")
    return value


def _call(members: Any, bare: Call) -> Call:
    has = members if isinstance(members, dict) else {}
    for member, call in BY_MEMBER.items():
        if member in has:
            return call
    if isinstance(has.get("inputs"), dict):
        return SIMILARITY
    if LABELS_ONLY & has.keys():
        return PREDICT
    return EMBED if VECTORS_ONLY & has.keys() else bare
