"""vLLM's way to load and unload adapters while it serves; the same as PUT and DELETE."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import ConfigDict, Field

from app.api.access import access
from app.api.adapter_object import etag
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.serving import Served
from app.catalog.install import How
from app.catalog.open_store import receiving
from app.catalog.pointer import valid_name
from app.inference.caller import Caller

router = APIRouter(tags=["vllm"])
log = logging.getLogger(__name__)
ERRORS = OPENAI.documented(403, 404, 413, 415, 503, 507)
DONE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A sentence.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


class NamedBody(JsonBody):
    """Of both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: str


class LoadBody(NamedBody):
    """vLLM's; lora_path is what `source` is in a PUT."""

    lora_path: str = Field(description="/folder, hf:org/repo@revision or org/repo.")
    load_inplace: bool = Field(False, description="Replace an adapter of this name.")


class UnloadBody(NamedBody):
    """vLLM's."""

    lora_int_id: int | None = Field(None, description="Not read.")


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    responses=DONE | ERRORS,
    openapi_extra=documented_body(LoadBody),
)
@access("admin key", changes="put", dialect=OPENAI)
async def load_lora_adapter(
    body: Annotated[LoadBody, body_of(LoadBody)], caller: Called, serving: Served
) -> Response:
    """Load an adapter from a folder of this server, or from the hub; it is stored like a PUT's."""
    name, path = _name(body, caller), body.lora_path

    def refuse_loaded(current: str | None) -> None:
        if current is not None and not body.load_inplace:
            reason = f"{name} has already been loaded: load_inplace=true replaces it"
            raise invalid("lora_name", reason)

    served = serving.runtime.registry.names.get(name)
    refuse_loaded(served.digest if served else None)
    source = path if path.startswith(("/", "hf:")) else f"hf:{path}"
    how = How(precondition=refuse_loaded, change=caller.change)
    async with receiving(serving.installer.store) as folder:
        done = await serving.installer.install_body(name, folder, source, how)
    if count := len(done.report.warnings):  # the answer has no room for them, nor may the log
        loaded = {"name": name, "count": count}
        log.warning("%(name)s was loaded with %(count)d warnings: GET /adapters/%(name)s", loaded)
    return PlainTextResponse(
        f"Success: LoRA adapter '{name}' added successfully.",
        headers={"ETag": etag(done.report.version)},
    )


@router.post(
    "/v1/unload_lora_adapter",
    response_class=PlainTextResponse,
    responses=DONE | ERRORS,
    openapi_extra=documented_body(UnloadBody),
)
@access("admin key", changes="delete", dialect=OPENAI)
async def unload_lora_adapter(
    body: Annotated[UnloadBody, body_of(UnloadBody)], caller: Called, serving: Served
) -> Response:
    """Stop serving the name, as DELETE does."""
    name = _name(body, caller)
    await serving.installer.remove(name, lambda _: None, caller.change)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _name(body: NamedBody, caller: Caller) -> str:
    """Raises Refusal."""
    if not valid_name(body.lora_name):
        reason = f"{body.lora_name!r:.80} is no adapter name: 1 to 63 of a-z 0-9 . _ -"
        raise invalid("lora_name", reason)
    caller.change.name = body.lora_name
    return body.lora_name
