"""OpenAI's shapes for the same calls: /v1/embeddings and /v1/models."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from app.api.access import access
from app.api.answer import embedded_headers, encoded, json_answer
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.dialect import SCHEMA, Dialect
from app.api.inputs import InputList, Inputs
from app.api.refusal import Refusal, invalid
from app.api.serving import Served
from app.inference.choose import BASE, Selection
from app.inference.embed import EmbedWish, embed
from app.inference.read import Texts
from app.inference.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["openai"])


def _error(refusal: Refusal, members: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's error object, with our own members beside it."""
    error = {
        "message": members["error"],
        "type": refusal.error_type,
        "param": next((p["field"] for p in refusal.problems if "field" in p), None),
        "code": refusal.error_type,
    }
    return {**members, "error": error}


ERROR = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
}
OPENAI = Dialect(
    _error, {**SCHEMA, "properties": {**SCHEMA["properties"], "error": ERROR}}, inputs="input"
)


class OpenAIEmbeddingBody(JsonBody):
    """As OpenAI's clients send it; members they add beyond these are let through."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "input": ["I love this film."]}]}
    )

    model: str = Field(description="base-id, adapter or base-id:adapter, each also with @version.")
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
    adapters: Any = Field(None, description="Not here: `model` chooses.", exclude=True)


EMBEDDED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Embeddings in OpenAI's shape.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["object", "data", "model", "usage"]},
                "example": {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123]}],
                    "model": "sentiment",
                    "usage": {"prompt_tokens": 7, "total_tokens": 7},
                },
            }
        },
    }
}
MODELS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The base, then every adapter.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["object", "data"]}}
        },
    }
}


@router.post(
    "/embeddings",
    response_class=Response,
    responses=EMBEDDED | OPENAI.documented(400, 404, 413, 415, 422, 429, 503),
    openapi_extra=documented_body(OpenAIEmbeddingBody),
)
@access("any key", model=True, dialect=OPENAI)
async def embeddings(
    request: Request,
    body: Annotated[OpenAIEmbeddingBody, body_of(OpenAIEmbeddingBody)],
    caller: Called,
    serving: Served,
) -> Response:
    """OpenAI's embeddings call; `model` chooses the adapter."""
    if body.adapters is not None or "adapter" in request.query_params:
        why = "below /v1 the member model chooses the adapter, and nothing else does"
        raise Refusal(400, "malformed", why)
    _refuse_foreign_ids(serving.runtime, body.input)
    texts = Texts(body.input.items, shortened=body.shortened)
    selection = Selection([_adapter_of(serving.runtime, body.model)])
    wish = EmbedWish(dimensions=body.dimensions)
    embedded = await embed(serving.runtime, caller, texts, selection, wish)
    vectors = encoded(embedded.ran.lines[0], body.encoding_format)
    tokens = embedded.ran.token_count
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_answer(answer, embedded_headers(embedded))


def _refuse_foreign_ids(runtime: Runtime, inputs: InputList) -> None:
    """Raises Refusal for token ids that are not this tokenizer's: they would be vectors of another
    text.

    Its own begin and end with its special tokens; OpenAI's, which LangChain sends by default, do
    not.
    """
    before, behind = runtime.tokenizer.single.around
    for i, item in enumerate(inputs.items):
        if isinstance(item, list) and not (
            tuple(item[: len(before)]) == before
            and tuple(item[len(item) - len(behind) :]) == behind
        ):
            where = "input" if inputs.single else f"input[{i}]"
            raise invalid(
                where,
                f"holds token ids that are not this model's: its own begin with {list(before)} and "
                f"end with {list(behind)}. Send texts; LangChain does with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False)",
            )


def _adapter_of(runtime: Runtime, model: str) -> str:
    """base-id -> base; base-id:adapter -> adapter; versions stay behind."""
    base = runtime.engine.encoder.files.id
    if model == base or model.startswith(f"{base}@"):
        return BASE + model.removeprefix(base)
    return model.removeprefix(f"{base}:")


@router.get("/models", response_class=Response, responses=MODELS)
@access("any key", dialect=OPENAI)
async def models(caller: Called, serving: Served) -> Response:
    """Every name that `model` may be."""
    encoder, names = serving.runtime.engine.encoder, dict(serving.runtime.registry.names)
    base = {"id": encoder.files.id, "object": "model", "created": 0, "owned_by": "base"}

    def listed() -> Response:
        adapters = [
            {
                "id": name,
                "object": "model",
                "created": names[name].created_unix,
                "owned_by": "adapter",
                "parent": encoder.files.id,
                "version": names[name].digest,
            }
            for name in caller.usable(names)
        ]
        return json_answer({"object": "list", "data": [base, *adapters]}, {})

    return await asyncio.to_thread(listed)
