"""GET /: where somebody who knows nothing but the address goes on."""

from __future__ import annotations

import shlex

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.api.access import access
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.refusal import Refusal
from app.api.routes.health import check_ready
from app.api.routes.page import page_file
from app.api.serving import Served, Serving
from app.inference.build import own_version
from app.inference.caller import Caller

router = APIRouter(tags=["running"])
VARY = {"Vary": "Accept"}


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
@access("nothing")
async def root(request: Request, caller: Called, serving: Served) -> Response:
    """A browser gets the page, or else the documentation; others are told how to ask."""
    if "text/html" in request.headers.get("accept", ""):
        if request.app.state.page and "adapter" not in request.path_params:
            return page_file("index.html", request, VARY)
        return RedirectResponse("/docs", 307, VARY)
    try:
        check_ready(serving)
        status = "ready"
    except Refusal as refusal:
        status = refusal.message
    url = str(request.base_url).rstrip("/")
    words = ["curl", "-s", f"{url}/embed", "-H", "Content-Type: application/json"]
    words += ["-d", '{"inputs": "I love this film."}']
    key = ' -H "Authorization: Bearer $KEY"' if request.app.state.needs_key else ""
    answer = {
        "name": "bert-lora-server",
        "version": own_version(),
        "status": status,
        "docs": f"{url}/docs",
        "openapi": f"{url}/openapi.json",
        "example": shlex.join(words) + key,
        "may": _may(request, caller, serving),
    }
    if not serving.keyed or caller.key is not None:
        answer["base"] = serving.runtime.engine.encoder.files.id
    return json_answer(answer, VARY)


def _may(request: Request, caller: Caller, serving: Serving) -> list[str]:
    """What the request's key is enough for: `ask`, `watch` (what shows every adapter), `change`."""
    asks = caller.key is not None or not request.app.state.needs_key
    changes = request.scope["state"]["admin_refusal"]() is None
    allowed = {"ask": asks, "watch": asks and caller.sees_all, "change": changes}
    return [word for word, holds in allowed.items() if holds]
