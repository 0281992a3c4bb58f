"""GET /live: what the server does now, for who watches it; for who keeps it: /metrics."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Response

from app.api.access import access
from app.api.answer import json_answer
from app.api.document import documented_answer
from app.api.serving import Served
from app.inference.live_state import LiveState, live_state

router = APIRouter(tags=["running"])
EXAMPLE = {
    "tokens_per_s": [0, 4096, 5120],
    "queue": {"tokens": 512, "limit_tokens": 40960, "running": 2, "waiting": 1},
    "latency": {"requests": 240, "p50_ms": 14.2, "p99_ms": 61.0},
    "batch_limit_tokens": 1024,
    "batches": [
        {"id": 7, "ended": 1795000000.25, "ms": 48.1, "adapters": {"sentiment": 600, "base": 212}}
    ],
}
LIVE = documented_answer(LiveState, "What the server does now.", EXAMPLE)


@router.get("/live", response_class=Response, responses=LIVE)
@access("unrestricted key", probe=True)
async def live(serving: Served) -> Response:
    """The last batches by adapter, tokens per second, the queue and its limit, latencies."""
    return json_answer(asdict(await asyncio.to_thread(live_state, serving.runtime)), {})
