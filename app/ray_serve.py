"""The server as an application of Ray Serve; the one file that knows Ray.

Ray starts the replicas, asks them through HTTP servers of its own, drains and replaces them. What
else serve.py does for a process is done here for each replica's. Knows nothing of adapters.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, HTTPOptions

from app.api.connection import MAX_CONNECTIONS
from app.assemble import StartRefused
from app.catalog.names import EVERY_S, Names
from app.catalog.open_store import BUCKET
from app.main import build
from app.serve import collecting_rarely, prepare
from app.settings import Settings, read_settings

NAME = "bert-lora"
FILL = "queue_fill"
FULL_ENOUGH = 0.5  # of a queue, above which another replica is wanted; as the chart's autoscaler
OBJECTS_BYTES = 128 << 20  # Ray's memory for objects that tasks share: there are none


def application(args: Mapping[str, Any]) -> serve.Application:
    """What a cluster deploys. args: settings by name, over the variables, and max_replicas.

    Raises SettingsRefused, and as replicated.
    """
    flags = dict(args)
    most = flags.pop("max_replicas", None)
    return replicated(read_settings(flags), most)


def replicated(given: Settings, most: int | None) -> serve.Application:
    """As many replicas as the settings say; most: up to as many, by how full their queues are.

    Raises StartRefused for what replicas would not have in common.
    """
    settings = _of_replicas(given, most or given.replicas)

    def app() -> FastAPI:
        return _app(settings)

    @serve.ingress(app)
    class Replica:
        """Ray's wrapper of an ASGI app, which has the app as `self.app`."""

        async def record_autoscaling_stats(self) -> dict[str, float]:
            """Of Ray, which hands it to the policy."""
            admission = self.app.state.serving.runtime.engine.admission  # type: ignore[attr-defined]
            return {FILL: admission.tokens / admission.max_tokens}

    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=MAX_CONNECTIONS,  # the queue says when it is too many: 429
        graceful_shutdown_timeout_s=settings.drain_seconds,
        **_scale(given.replicas, most),
    )
    return deployment(Replica).bind()


def by_queue(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """How many replicas are wanted, as Kubernetes' autoscaler counts them: by the mean of their
    queues' tokens ÷ limit. Ray keeps it within bounds, and waits before it follows.
    """
    fills = list(context.aggregated_metrics.get(FILL, {}).values())
    if not fills:
        return context.target_num_replicas, {}
    return math.ceil(sum(fills) / FULL_ENOUGH), {}


def run(settings: Settings, most: int | None) -> None:
    """Deploy to RAY_ADDRESS's cluster; without one, to a cluster of this process and machine alone,
    until it is interrupted. Raises as replicated.
    """
    application, alone = replicated(settings, most), "RAY_ADDRESS" not in os.environ
    if alone:  # "local": not a cluster that somebody has started on this machine
        ray.init("local", include_dashboard=False, object_store_memory=OBJECTS_BYTES)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray ends in order on SIGINT
    serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
    serve.run(application, name=NAME, route_prefix="/", blocking=alone)


def _of_replicas(given: Settings, most: int) -> Settings:
    """Raises StartRefused."""
    if not BUCKET.match(given.store) and (given.admin_keys or given.admin_keys_file):
        raise StartRefused(
            "on Ray a store in a folder is each replica's own, so a PUT would change the adapter "
            "in one of them only: set BERT_LORA_STORE=s3://…, or no admin keys"
        )
    # Others reach it through Ray's ingress: without a key nobody changes adapters.
    return given.model_copy(update={"replicas": most, "host": "0.0.0.0"})


def _scale(fewest: int, most: int | None) -> dict[str, Any]:
    if most is None:
        return {"num_replicas": fewest}
    policy = AutoscalingPolicy(policy_function=by_queue)
    config = AutoscalingConfig(min_replicas=fewest, max_replicas=most, policy=policy)
    return {"autoscaling_config": config}


def _app(settings: Settings) -> FastAPI:
    """Of one replica, in its process."""
    prepare(settings)
    own: AbstractContextManager[object] = nullcontext()
    if not BUCKET.match(settings.store):
        own = TemporaryDirectory(prefix="bert-lora-")
        settings = settings.model_copy(update={"store": own.name})
    app = build(settings)
    serving = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with own:
            async with serving(app):
                await _met(app.state.serving.runtime.names)
                with collecting_rarely():
                    yield

    app.router.lifespan_context = lifespan
    return app


async def _met(names: Names) -> None:
    """Until the bucket has answered once: Ray does not ask /readyz, and sends requests to whichever
    replica has started.
    """
    while not names.met:  # noqa: ASYNC110  # it changes once in a life
        await asyncio.sleep(EVERY_S)
