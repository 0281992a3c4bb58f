"""GET /info: the base or an adapter, and the limits; TEI's members and ours."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, assert_never

import torch
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from app.adapters.sentence import Sentence
from app.adapters.values import Adapter
from app.api.access import access
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.choosing import AdapterQuery, selection_of_one
from app.api.dialect import documented
from app.api.middleware.authenticate import refuse_unless_admin
from app.api.routes.health import OBJECT, usable
from app.api.serving import Served
from app.inference.build import own_version
from app.inference.choose import BASE, Chosen, resolve
from app.inference.kinds import kind_of
from app.inference.runtime import Runtime
from app.inference.tasks import usable_tasks
from app.model import machine
from app.model.version import embedding_space

router = APIRouter(tags=["running"])


class InfoQuery(AdapterQuery):
    """Whose information, and whether the weights are read again."""

    verify: bool = Field(False, description="An admin's: read every weight of the base again.")
    modules: bool = Field(False, description="Name every module that an adapter can change.")


@router.get("/info", response_class=Response, responses=OBJECT | documented(401, 403, 404, 422))
@access("any key")
async def info(
    request: Request, query: Annotated[InfoQuery, Query()], caller: Called, serving: Served
) -> Response:
    """The base, or the adapter that is chosen, and the limits.

    verify=true reads every weight again: `digest_now`. modules=true: `modules`, their paths.
    """
    runtime, encoder = serving.runtime, serving.runtime.engine.encoder
    names = selection_of_one(request, query.adapter).adapters
    chosen = await resolve(runtime, caller, names[0] if names else BASE)
    base: dict[str, Any] = {"digest": encoder.digest}
    if query.verify:
        refuse_unless_admin(request)
        now = await asyncio.get_running_loop().run_in_executor(serving.verifier, encoder.digest_now)
        base |= {"digest_now": now, "intact": now == encoder.digest}
    registry = runtime.registry
    answer = {
        **_tei_members(runtime, chosen),
        "architecture": encoder.base.model_type,
        "device": str(encoder.device),
        "slow_paths": dict(encoder.slow_paths),
        "torch": torch.__version__,
        "base": base,
        "hidden_size": encoder.base.hidden,
        "layers": encoder.base.layers,
        "linears": len(encoder.base.linears),
        **_sentence_members(runtime, chosen),
        "tasks": {
            name: task.model_dump() for name, task in usable_tasks(runtime.tasks, caller).items()
        },
        "adapters": await asyncio.to_thread(caller.usable, tuple(registry.names)),
        "broken": usable(caller, registry.not_served),
        "merged_bytes": registry.merged_bytes,
    }
    if query.modules:
        answer["modules"] = encoder.base.modules
    return json_answer(answer, {})


def _tei_members(runtime: Runtime, chosen: Chosen) -> dict[str, Any]:
    """Those of TEI's document. max_concurrent_requests: so many of the longest inputs may wait."""
    encoder, engine = runtime.engine.encoder, runtime.engine
    sentence = runtime.sentence(chosen.version)
    return {
        "model_id": encoder.files.id,
        "model_sha": chosen.version.digest,
        "model_dtype": str(encoder.dtype).removeprefix("torch."),
        "served_model_name": encoder.files.id if chosen.name == BASE else chosen.name,
        "model_type": model_type(chosen.version.adapter, sentence),
        "max_concurrent_requests": max(1, engine.admission.max_tokens // encoder.max_length),
        "max_input_length": sentence.max_length,
        "max_batch_tokens": engine.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": runtime.max_inputs,
        "auto_truncate": True,
        "tokenization_workers": machine.cores(),
        "version": own_version(),
        "sha": None,
        "docker_label": None,
    }


def model_type(adapter: Adapter, sentence: Sentence) -> dict[str, Any]:
    """TEI's: {"embedding": …}, {"classifier": …} or {"reranker": …}."""
    kind = kind_of(adapter)
    match kind:
        case "embedding":
            pooling = "last_token" if sentence.pooling == "last" else sentence.pooling
            return {kind: {"pooling": pooling}}
        case "classifier" | "reranker":
            names = dict(enumerate(adapter.labels))
            return {
                kind: {
                    "id2label": {str(i): name for i, name in names.items()},
                    "label2id": {name: i for i, name in names.items()},
                }
            }
        case _:
            assert_never(kind)


def _sentence_members(runtime: Runtime, chosen: Chosen) -> dict[str, Any]:
    sentence, base = runtime.sentence(chosen.version), runtime.engine.base
    own = None if chosen.version is base else chosen.version.digest
    return {
        "pooling": sentence.pooling,
        "normalize": sentence.normalize,
        "prompts": dict(sentence.prompts or {}),
        "embedding_space": embedding_space(base.digest, own),
    }
