"""The app: its routes, what stands before them, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from app.api import adapters, dialects, health, inference, tei, versions
from app.api.access import open_pages
from app.api.body_memory import body_memory
from app.api.draining import Drain
from app.api.errors import install_errors
from app.api.guard import Guard
from app.api.key_entries import Key, KeysRefused, keys_of, refuse_twice
from app.api.keys import Door, is_loopback
from app.api.metrics import Metrics
from app.api.overload import Gate
from app.api.serving import Serving
from app.assemble import StartRefused, assemble
from app.catalog.collecting import collect
from app.catalog.disk import alone
from app.catalog.store import StoreUnusable
from app.catalog.watch import Folders, look_at_start, sync_at_start, watch
from app.engine.watchdog import watch_forwards
from app.settings import Settings, listed

log = logging.getLogger(__name__)
ROOMS = (inference, adapters, versions, dialects, tei, health)


def build(settings: Settings) -> FastAPI:
    """The whole app; all its state is made in the lifespan and lives on the app.

    The lifespan raises StartRefused.
    """
    metrics = Metrics(CollectorRegistry(), settings.metrics_adapters)
    keys, drain = _keys(settings), Drain()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _alone(settings.store) as held:
            folders = await asyncio.to_thread(look_at_start, settings.adapters_dir)
            serving = await asyncio.to_thread(
                assemble, settings, metrics, drain, keyed=bool(keys), may_write=held
            )
            app.state.serving = serving
            serving.engine.start()
            unwatch = watch_forwards(serving.engine, settings.max_forward_seconds)
            try:
                await serving.fetcher.load_all()
                async with _beside(serving, settings.adapters_dir, folders):
                    names = sorted(serving.registry.names)
                    log.info(
                        "serving %s with %d adapters: %s",
                        _base(serving),
                        len(names),
                        ", ".join(names[:20]) + (", …" if len(names) > 20 else ""),
                    )
                    yield
            finally:
                await asyncio.to_thread(serving.engine.stop)
                unwatch()

    app = FastAPIOffline(
        title="bert-lora-server",
        description="One frozen BERT, many LoRA adapters, each request picks its own.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    open_pages(app.routes)
    for room in ROOMS:  # not include_router: the guard asks the very routes that will run
        app.router.routes.extend(room.router.routes)
    install_errors(app)
    app.add_middleware(Gate)
    app.add_middleware(Door, keys=keys, loopback=is_loopback(settings.host))
    app.add_middleware(
        Guard,
        metrics=metrics,
        drain=drain,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_adapter_bytes,
        bodies=body_memory(settings.max_body_bytes),
    )
    if origins := listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.state.drain = drain
    return app


def _keys(settings: Settings) -> list[Key]:
    """Of the settings and their files. Raises StartRefused."""
    said, admin_said = (
        secret.get_secret_value() if secret else None
        for secret in (settings.api_keys, settings.admin_keys)
    )
    try:
        return refuse_twice(
            [
                *keys_of("api", said, settings.api_keys_file),
                *keys_of("admin", admin_said, settings.admin_keys_file),
            ]
        )
    except KeysRefused as error:
        raise StartRefused(f"keys: {error}") from None


@contextlib.contextmanager
def _alone(store: Path) -> Iterator[bool]:
    """As disk.alone. Raises StartRefused where another server has the store."""
    try:
        with alone(store) as held:
            yield held
    except StoreUnusable as error:
        raise StartRefused(str(error)) from error


@asynccontextmanager
async def _beside(serving: Serving, adapters_dir: Path, folders: Folders) -> AsyncIterator[None]:
    """What goes on beside the requests, from the folders that were there as the start began."""
    seen = await sync_at_start(serving.installer, adapters_dir, folders)
    works = (
        watch(serving.installer, adapters_dir, seen),
        serving.fetcher.warm(),
        collect(serving.installer.store),
    )
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_say_if_failed)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the server has stopped: start it again", exc_info=error)


def _base(serving: Serving) -> str:
    encoder = serving.engine.encoder
    return f"{encoder.files.id} ({encoder.base.model_type}, {encoder.device}, {encoder.dtype})"
