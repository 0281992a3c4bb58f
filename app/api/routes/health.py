"""/livez, /readyz, /health, /ping, /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from app.api.access import access
from app.api.adapter_object import Answers
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.dialect import documented
from app.api.refusal import Refusal
from app.api.serving import Served, Serving
from app.api.tei_errors import TEI
from app.inference.build import own_version
from app.inference.caller import Caller
from app.inference.watched import Row

router = APIRouter(tags=["running"])

LOST = "the device is lost: this process is about to end"
OBJECT: Answers = {
    200: {
        "description": "An object.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
METRICS: Answers = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_class=Response, responses=OBJECT | documented(503))
@access("nothing", probe=True)
async def livez(serving: Served) -> Response:
    """The process answers, no forward hangs, and the device is there."""
    if serving.runtime.engine.hung:
        raise Refusal(503, "hung", "a forward hangs: this process is about to end")
    if serving.runtime.engine.lost is not None:
        raise Refusal(503, "device_lost", f"{LOST} ({serving.runtime.engine.lost})")
    return json_answer({"status": "alive"}, {})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_class=Response, responses=OBJECT | documented(503))
@access("nothing", probe=True)
async def readyz(caller: Called, serving: Served, verbose: bool = False) -> Response:
    """The base is loaded and the loop turns; names that could not be loaded are listed."""
    check_ready(serving)
    answer: dict[str, Any] = {"status": "ready"}
    if not serving.keyed or caller.key is not None:
        registry = serving.runtime.registry
        answer |= {
            "adapters": len(await asyncio.to_thread(caller.usable, tuple(registry.names))),
            "broken": usable(caller, registry.not_served),
            "folder_gone": usable(caller, registry.folder_gone),
        }
        if verbose:
            aside = await asyncio.to_thread(serving.installer.store.set_aside_versions)
            answer["set_aside"] = aside
            answer["store"] = serving.runtime.names.unreachable or "answers"
            answer["slow_paths"] = dict(serving.runtime.engine.encoder.slow_paths)
    return json_answer(answer, {})


def usable(caller: Caller, reasons: Mapping[str, str]) -> dict[str, str]:
    """Of names with a reason, those that the caller may know of."""
    return {name: why for name, why in reasons.items() if caller.may_use(name)}


@router.head("/health", include_in_schema=False)
@router.get("/health", response_class=Response, responses=OBJECT | TEI.documented(503))
@access("nothing", probe=True, dialect=TEI)
async def health(serving: Served) -> Response:
    """As /readyz, for TEI's clients."""
    check_ready(serving)
    return json_answer({"status": "ok"}, {})


@router.head("/ping", include_in_schema=False)
@router.get("/ping", response_class=Response, responses=OBJECT | TEI.documented(503))
@access("nothing", probe=True, dialect=TEI)
async def ping(serving: Served) -> Response:
    """The same, for SageMaker."""
    return await health(serving)


def check_ready(serving: Serving) -> None:
    """Raises Refusal (503) where no request is to be sent to this server."""
    if serving.drain.leaving:
        raise Refusal(503, "draining", "this server is about to end")
    if serving.runtime.engine.hung:
        raise Refusal(503, "not_ready", "a forward hangs: this process is about to end")
    if serving.runtime.engine.lost is not None:
        raise Refusal(503, "not_ready", f"{LOST} ({serving.runtime.engine.lost})")
    if not serving.runtime.names.met:
        why = serving.runtime.names.unreachable
        raise Refusal(503, "not_ready", f"no name is known yet: {why}")
    if not serving.runtime.engine.turning:
        raise Refusal(503, "not_ready", "the model's loop is not running: restart the server")


def ready_row(serving: Serving) -> Row:
    """/readyz's answer, for /metrics."""

    def ready() -> bool:
        try:
            check_ready(serving)
        except Refusal:
            return False
        return True

    return Row("gauge", "bert_lora_ready", "Whether /readyz answers 200.", ready)


@router.get("/version", response_class=Response, responses=OBJECT)
@access("any key")
async def server_version() -> Response:
    """This server's version, where vLLM's clients look for it."""
    return json_answer({"version": own_version()}, {})


@router.get("/metrics", response_class=Response, responses=METRICS)
@access("unrestricted key", probe=True)
async def metrics(serving: Served) -> Response:
    """Requests, tokens and latency by adapter, for Prometheus."""
    text = await asyncio.to_thread(serving.runtime.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4")
