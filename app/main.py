"""The app: its routes, what stands before them, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app.api.access import open_pages
from app.api.choosing import below_prefix
from app.api.document import describe
from app.api.draining import Drain
from app.api.errors import install_errors
from app.api.key_entries import KeysRefused, keys_of, refuse_twice
from app.api.middleware.access_log import AccessLog
from app.api.middleware.authenticate import Authenticate, is_loopback, who_may_change
from app.api.middleware.body_memory import body_memory
from app.api.middleware.count import Count
from app.api.middleware.deadline import Deadline
from app.api.middleware.identify import Identify
from app.api.middleware.limit_body import LimitBody
from app.api.middleware.record_changes import RecordChanges
from app.api.middleware.refuse_early import RefuseEarly
from app.api.middleware.shed_load import ShedLoad
from app.api.middleware.trace import BeginSpan, TraceRequests
from app.api.reasons import reasons
from app.api.routes import DIALECTS, ROUTES, page
from app.api.routes.health import ready_row
from app.api.serving import Serving
from app.assemble import StartRefused, assemble
from app.catalog.collecting import collect
from app.catalog.folders import sync_own
from app.catalog.open_store import open_store
from app.catalog.store import Store, StoreUnusable
from app.catalog.stored_names import StoredNames, read_names
from app.catalog.watch import Folders, look_at_start, sync_at_start, watch
from app.engine.watchdog import watch_forwards
from app.inference import words
from app.inference.caller import Key
from app.inference.metrics import Metrics
from app.inference.watched import Watched
from app.settings import Settings, listed
from app.start_log import served_line

if TYPE_CHECKING:
    from app.tracing import Tracing

log = logging.getLogger(__name__)
# What a page of an allowed origin may read of an answer, beside what any page may.
EXPOSED = [
    "ETag",
    "Link",
    "Retry-After",
    "retry-after-ms",
    "Server-Timing",
    "X-Adapter",
    "X-Adapter-Resident",
    "X-Embedding-Space",
    "X-Request-Id",
    "X-Revision",
    "X-Shape",
    "X-Total-Count",
    "traceresponse",
    "x-compute-characters",
    "x-compute-time",
    "x-compute-tokens",
    "x-compute-type",
    "x-inference-time",
    "x-queue-time",
    "x-tokenization-time",
    "x-total-time",
]


def build(settings: Settings) -> FastAPI:
    """The whole app; all its state is made in the lifespan and lives on the app.

    The lifespan raises StartRefused.
    """
    metrics, drain = Metrics(settings.metrics_adapters), Drain()
    keys, tracing = _keys(settings), _tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _store(settings) as store:
            folders = await asyncio.to_thread(look_at_start, settings.adapters_dir)
            if store.shared:
                _say_what_is_not_read(settings.adapters_dir, folders)
            (runtime, installer), stored = await asyncio.gather(
                asyncio.to_thread(assemble, settings, metrics, store),
                asyncio.to_thread(read_names, store),
            )
            serving = Serving(runtime, installer, keyed=bool(keys), drain=drain)
            app.state.serving = serving
            if tracing:
                tracing.follow(runtime.engine)
            metrics.registry.register(Watched([ready_row(serving)]))
            async with _engine_running(serving, settings.max_forward_seconds):
                await serving.runtime.fetcher.load_all(stored)
                async with _beside(serving, settings.adapters_dir, folders, stored):
                    del stored  # some 3 KB a version
                    await _prepare_words(serving)
                    log.info(*served_line(serving))
                    yield
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPIOffline(
        title="bert-lora-server",
        description="One frozen BERT, many LoRA adapters, each request picks its own.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    _add_routes(app, metrics, with_page=settings.page)
    install_errors(app)
    _add_middlewares(app, settings, keys, metrics, drain, tracing.begin if tracing else None)
    describe(app)
    app.state.drain, app.state.metrics = drain, metrics
    app.state.page = settings.page
    app.state.needs_key = any(not key.admin for key in keys)
    app.state.who_may_change = who_may_change(keys, settings.host)
    return app


def _add_routes(app: FastAPI, metrics: Metrics, *, with_page: bool) -> None:
    """Ours beside the documentation's; those that any key may ask below the prefix, too."""
    open_pages(app.routes)
    shown = (*ROUTES, *([page] if with_page else []))
    for module in shown:  # not include_router: the middlewares ask the very routes that will run
        app.router.routes.extend(module.router.routes)
    for path, reason in reasons(app.routes):
        metrics.refusals.labels(path, reason)
    for module in DIALECTS:
        app.router.routes.extend(below_prefix(module.router.routes))


def _add_middlewares(
    app: FastAPI,
    settings: Settings,
    keys: list[Key],
    metrics: Metrics,
    drain: Drain,
    begin_span: BeginSpan | None,
) -> None:
    """From the innermost to the outermost."""
    app.add_middleware(ShedLoad)
    app.add_middleware(Deadline)
    app.add_middleware(Authenticate, keys=keys, loopback=is_loopback(settings.host))
    app.add_middleware(
        LimitBody,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_adapter_bytes,
        memory=body_memory(settings.max_body_bytes),
    )
    app.add_middleware(RefuseEarly, drain=drain)
    app.add_middleware(RecordChanges)
    app.add_middleware(Count, metrics=metrics, drain=drain)
    if settings.access_log:
        app.add_middleware(AccessLog)
    if begin_span:
        app.add_middleware(TraceRequests, begin=begin_span)
    app.add_middleware(Identify, drain=drain)
    if origins := listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )


@asynccontextmanager
async def _engine_running(serving: Serving, max_forward_s: float) -> AsyncIterator[None]:
    engine = serving.runtime.engine
    engine.start()
    unwatch = watch_forwards(engine, max_forward_s)
    try:
        yield
    finally:
        await asyncio.to_thread(engine.stop)
        unwatch()


def _keys(settings: Settings) -> list[Key]:
    """Of the settings and their files. Raises StartRefused."""
    entries, admin_entries = (
        secret.get_secret_value() if secret else None
        for secret in (settings.api_keys, settings.admin_keys)
    )
    try:
        return refuse_twice(
            [
                *keys_of("api", entries, settings.api_keys_file),
                *keys_of("admin", admin_entries, settings.admin_keys_file),
            ]
        )
    except KeysRefused as error:
        raise StartRefused(f"keys: {error}") from None


def _tracing(settings: Settings) -> Tracing | None:
    """Raises StartRefused where it is asked for and OpenTelemetry is not installed."""
    if not settings.tracing:
        return None
    try:
        from app.tracing import Tracing
    except ImportError as error:
        raise StartRefused(
            f"TRACING needs OpenTelemetry ({error}): pip install 'bert-lora-server[otel]'"
        ) from None
    return Tracing()


@contextlib.contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    """As open_store. Raises StartRefused for a place that cannot be used, or that another has."""
    try:
        with open_store(settings.store, settings.cache_dir, settings.cache_bytes) as store:
            yield store
    except StoreUnusable as error:
        raise StartRefused(str(error)) from error


@asynccontextmanager
async def _beside(
    serving: Serving, adapters_dir: Path, folders: Folders, stored: StoredNames
) -> AsyncIterator[None]:
    """What goes on beside the requests, from the folders and names that the start has seen."""
    works = [collect(serving.installer.store, serving.runtime.fetcher)]
    if serving.installer.store.shared:
        serving.runtime.names.begin(stored)
        works.append(serving.runtime.names.follow())
    else:
        seen = await _sync_folders(serving, adapters_dir, folders)
        works.append(watch(serving.installer, adapters_dir, seen))
        works.append(serving.runtime.fetcher.warm())
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_say_if_failed)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _prepare_words(serving: Serving) -> None:
    """Where an adapter labels words: its first request does not wait for what that needs."""
    runtime = serving.runtime
    if any(name.report.task == "tokens" for name in runtime.registry.names.values()):
        await asyncio.to_thread(words.prepare, runtime.tokenizer)


async def _sync_folders(serving: Serving, adapters_dir: Path, folders: Folders) -> Folders:
    named = {task.adapter for task in serving.runtime.tasks.values() if task.adapter}
    base = serving.runtime.engine.encoder.files.folder
    own = await sync_own(serving.installer, base, named - set(folders))
    return await sync_at_start(serving.installer, adapters_dir, folders, own)


def _say_what_is_not_read(adapters_dir: Path, folders: Folders) -> None:
    if folders:
        what = {"folder": str(adapters_dir), "names": ", ".join(folders)}
        log.warning(
            "%(folder)s is not read, since other servers share the store and may have other "
            "folders: bert-lora push each of %(names).1000s",
            what,
        )


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the server has stopped: start it again", exc_info=error)
