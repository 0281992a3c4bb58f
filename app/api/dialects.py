"""Other servers' shapes for the same call: OpenAI's /v1/embeddings and /v1/models."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import access
from app.api.answer import base64_strings, float_lists, header_list, json_answer
from app.api.body import body_of, documented_body
from app.api.choosing import BASE, choose
from app.api.embedding import Wish, prompts, spaces, wants
from app.api.errors import OPENAI_SCHEMA, Refusal, documented, invalid
from app.api.inputs import InputList, Inputs
from app.api.keys import usable
from app.api.reading import Texts
from app.api.running import run
from app.api.serving import Served, Serving

router = APIRouter(prefix="/v1", tags=["openai"])


class OpenAIEmbeddingBody(BaseModel):
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
    responses=EMBEDDED | documented(400, 404, 413, 415, 422, 429, 503, schema=OPENAI_SCHEMA),
    openapi_extra=documented_body(OpenAIEmbeddingBody),
)
@access("any key", model=True)
async def embeddings(
    request: Request,
    body: Annotated[OpenAIEmbeddingBody, body_of(OpenAIEmbeddingBody)],
    serving: Served,
) -> Response:
    """OpenAI's embeddings call; `model` chooses the adapter."""
    if body.adapters is not None or "adapter" in request.query_params:
        raise Refusal(
            400,
            "malformed",
            "below /v1 the member model chooses the adapter, and nothing else does",
        )
    count = len(body.input.items)
    choice = await choose(request, serving, [_adapter_of(serving, body.model)], None, count)
    _refuse_foreign_ids(serving, body.input)
    wish = Wish(dimensions=body.dimensions)
    items = body.input.items
    texts = Texts(items, prompt=prompts(serving, wish, items, choice))
    ran = await run(request, serving, choice, texts, wants(serving, wish, choice))
    rows = ran.lines[0]
    vectors = base64_strings(rows) if body.encoding_format == "base64" else float_lists(rows)
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": ran.tokens, "total_tokens": ran.tokens},
    }
    space = {"X-Embedding-Space": header_list(spaces(serving, wish, choice))}
    return json_answer(answer, ran.headers | space)


def _refuse_foreign_ids(serving: Serving, inputs: InputList) -> None:
    """Raises Refusal for token ids that are not this tokenizer's: they would be vectors of another text.

    Its own begin and end with its special tokens; OpenAI's, which LangChain sends by default, do not.
    """
    before, behind = serving.tokenizer.single.around
    for i, item in enumerate(inputs.items):
        if isinstance(item, list) and not (
            tuple(item[: len(before)]) == before
            and tuple(item[len(item) - len(behind) :]) == behind
        ):
            where = "input" if inputs.single else f"input[{i}]"
            raise invalid(
                where,
                f"holds token ids that are not this model's: its own begin with {list(before)} and end "
                f"with {list(behind)}. Send texts; LangChain does with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False)",
            )


def _adapter_of(serving: Serving, model: str) -> str:
    """base-id -> base; base-id:adapter -> adapter; versions stay behind."""
    base = serving.engine.encoder.files.id
    if model == base or model.startswith(f"{base}@"):
        return BASE + model.removeprefix(base)
    return model.removeprefix(f"{base}:")


@router.get("/models", response_class=Response, responses=MODELS)
@access("any key")
async def models(request: Request, serving: Served) -> Response:
    """Every name that `model` may be."""
    encoder, names = serving.engine.encoder, dict(serving.registry.names)
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
            for name in usable(request, names)
        ]
        return json_answer({"object": "list", "data": [base, *adapters]}, {})

    return await asyncio.to_thread(listed)
