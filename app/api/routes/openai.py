"""OpenAI's shapes for the same calls: /v1/embeddings and /v1/models, and Azure's paths to them."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.sentence import Pooling
from app.api.access import access
from app.api.answer import embedded_headers, encoded, json_answer, model_of
from app.api.body import body_of, documented_body
from app.api.caller import Called
from app.api.choosing import AdapterQuery, SelectedOne, selection_of, with_model
from app.api.document import documented_answer
from app.api.inputs import InputList, Prompt
from app.api.jina_members import InputsOrObjects, JinaMembers
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.serving import Served, Serving
from app.api.vllm_members import EncodedMembers, VllmMembers
from app.catalog.registry import Name, find_version
from app.inference.caller import Caller
from app.inference.choose import BASE, Selection, alike, names_in
from app.inference.embed import EmbedWish, embed
from app.inference.errors import Forbidden
from app.inference.runtime import Runtime

router = APIRouter(tags=["openai"])
ERRORS = OPENAI.documented(404, 413, 415, 429, 503)


class OpenAIEmbeddingBody(JinaMembers, VllmMembers, EncodedMembers):
    """As OpenAI's clients send it, our own members, Jina's and vLLM's; any other is refused."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "input": ["I love this film."]}]}
    )

    model: str | None = Field(
        None,
        description="base-id, adapter or base-id:adapter, each also with @version; none: the base. "
        "Not read beside a deployment in the path.",
    )
    input: InputsOrObjects
    use_activation: bool | None = Field(None, description="As normalize.")
    prompt: Prompt | None = Field(None, description="Put before each text.")
    prompt_name: str | None = Field(None, description="One of the base's own prompts, or a task.")
    task: str | None = Field(None, description="One of the tasks that /info lists.")
    pooling: Pooling | None = Field(None, description="How token states become one vector.")

    def wish(self) -> EmbedWish:
        """How the vectors are wanted."""
        spellings = (self.normalize, self.normalized, self.use_activation)
        normalize = next((value for value in spellings if value is not None), None)
        return EmbedWish(
            normalize, self.pooling, self.dimensions, self.prompt, self.prompt_name, self.task
        )


class AzureQuery(AdapterQuery):
    """Every Azure client says which version of the interface it speaks; there is one here."""

    api_version: str | None = Field(None, alias="api-version", description="Not read.")


class Usage(BaseModel):
    """Special tokens are counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(BaseModel):
    """One input's vector; a string is base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """In the inputs' order. model: as the adapter was named."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """The base, or an adapter, which alone has a parent and a version."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["base", "adapter"]
    parent: str = ""
    version: str = ""


class ModelList(BaseModel):
    """Every name that `model` may be."""

    object: Literal["list"]
    data: list[ModelCard]


USAGE = {"prompt_tokens": 7, "total_tokens": 7}
ITEM = {"object": "embedding", "index": 0, "embedding": [0.0123]}
EMBEDDED = documented_answer(
    EmbeddingList,
    "Embeddings in OpenAI's shape.",
    {"object": "list", "data": [ITEM], "model": "sentiment", "usage": USAGE},
)
MODELS = documented_answer(ModelList, "The base, then every adapter.")
MODEL = documented_answer(ModelCard, "The base, or an adapter.")


@router.post(
    "/v1/embeddings",
    response_class=Response,
    responses=EMBEDDED | ERRORS,
    openapi_extra=documented_body(OpenAIEmbeddingBody),
)
@access("any key", model=True, dialect=OPENAI)
async def embeddings(
    body: Annotated[OpenAIEmbeddingBody, body_of(OpenAIEmbeddingBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """OpenAI's embeddings call; `model` chooses the adapter."""
    selection = with_model(serving.runtime, selection, body.model)
    return await _embedded(serving, caller, body, selection)


@router.post(
    "/openai/deployments/{deployment:path}/embeddings",
    response_class=Response,
    responses=EMBEDDED | ERRORS,
    openapi_extra=documented_body(OpenAIEmbeddingBody),
)
@access("any key", model=True, dialect=OPENAI)
async def azure_embeddings(
    request: Request,
    deployment: str,
    body: Annotated[OpenAIEmbeddingBody, body_of(OpenAIEmbeddingBody)],
    query: Annotated[AzureQuery, Query()],
    caller: Called,
    serving: Served,
) -> Response:
    """The same where Azure has it; the deployment chooses the adapter."""
    selection = with_model(serving.runtime, selection_of(request, query.adapter), deployment)
    return await _embedded(serving, caller, body, selection)


router.add_api_route("/openai/v1/embeddings", embeddings, methods=["POST"], include_in_schema=False)


async def _embedded(
    serving: Serving, caller: Caller, body: OpenAIEmbeddingBody, selection: Selection
) -> Response:
    _refuse_foreign_ids(serving.runtime, body.input)
    texts = body.as_texts(body.input.items)
    embedded = await embed(serving.runtime, caller, texts, selection, body.wish())
    vectors = encoded(embedded.ran.lines[0], body.embedding_type or body.encoding_format)
    tokens = embedded.ran.token_count
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)
        ],
        "model": model_of(serving.runtime, embedded.ran),
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


@router.get("/v1/models", response_class=Response, responses=MODELS | ERRORS)
@access("any key", dialect=OPENAI)
async def models(request: Request, caller: Called, serving: Served) -> Response:
    """Every name that `model` may be; below /a/{adapter} that one alone."""
    runtime = serving.runtime
    chosen = request.path_params.get("adapter")
    if chosen is not None:
        return json_answer({"object": "list", "data": [await _model(runtime, caller, chosen)]}, {})
    names = dict(runtime.registry.names)

    def listed() -> Response:
        adapters = [_adapter(runtime, names[name]) for name in caller.usable(names)]
        return json_answer({"object": "list", "data": [_base(runtime), *adapters]}, {})

    return await asyncio.to_thread(listed)


@router.get("/v1/models/{model:path}", response_class=Response, responses=MODEL | ERRORS)
@access("any key", dialect=OPENAI)
async def model(model: str, caller: Called, serving: Served) -> Response:
    """The base or one adapter, by any way to spell it that `model` may have in a body."""
    return json_answer(await _model(serving.runtime, caller, model), {})


async def _model(runtime: Runtime, caller: Caller, spelled: str) -> dict[str, Any]:
    """Raises Forbidden, UnknownAdapter, UnknownVersion, OlderThanAsked, StoreUnavailable."""
    names = names_in(runtime, spelled)
    for name in names:
        if not caller.may_use(name):
            raise Forbidden(name)
    if alike(runtime, spelled) not in names:  # a weighted sum: as new as its newest part
        entries = [
            await runtime.names.get(name, caller.at_least(name)) for name in names if name != BASE
        ]
        parts = [_adapter(runtime, entry) for entry in entries]
        newest = max(parts, key=itemgetter("created"), default=_base(runtime))
        return {**newest, "id": spelled}
    name, (_, at, version) = names[0], spelled.partition("@")
    if name == BASE:
        return {**_base(runtime), "id": spelled}
    served = await runtime.names.get(name, caller.at_least(name))
    if at:
        find_version(name, served.pointer.history, version)
    return {**_adapter(runtime, served), "id": spelled}


def _base(runtime: Runtime) -> dict[str, Any]:
    base_id = runtime.engine.encoder.files.id
    return {"id": base_id, "object": "model", "created": 0, "owned_by": "base"}


def _adapter(runtime: Runtime, name: Name) -> dict[str, Any]:
    return {
        "id": name.name,
        "object": "model",
        "created": name.created_unix,
        "owned_by": "adapter",
        "parent": runtime.engine.encoder.files.id,
        "version": name.digest,
    }
