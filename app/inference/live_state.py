"""What GET /live answers: the last minute, and the queue as it is now."""

from __future__ import annotations

from dataclasses import dataclass

from app.inference.live import Batch, Latency
from app.inference.runtime import Runtime
from app.inference.watched import running_and_waiting


@dataclass(frozen=True)
class QueueState:
    """Tokens that wait, and how many may; requests that the model has begun, and those that
    wait.
    """

    tokens: int
    limit_tokens: int
    running: int
    waiting: int


@dataclass(frozen=True)
class LiveState:
    """tokens_per_s: of each of the last 60 whole seconds, the oldest first. batches: the last 64 at
    most, the oldest first.
    """

    tokens_per_s: list[int]
    queue: QueueState
    latency: Latency
    batch_limit_tokens: int
    batches: list[Batch]


def live_state(runtime: Runtime) -> LiveState:
    """All of it now. Blocks, shortly."""
    live, admission = runtime.metrics.live, runtime.engine.admission
    queue = QueueState(admission.tokens, admission.max_tokens, *running_and_waiting(runtime.engine))
    return LiveState(
        live.tokens_per_s(), queue, live.latency(), runtime.engine.max_batch_tokens, live.batches()
    )
