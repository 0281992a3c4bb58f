"""Builds the objects in order and mounts the routes; nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from app.adapters.disk import StoreUnusable, alone
from app.adapters.registry import Registry
from app.adapters.residents import Residents
from app.adapters.source import Sources
from app.adapters.store import Store
from app.api import adapters, dialects, health, inference, tei, versions
from app.api.connection import BoundedProtocol, listen
from app.api.draining import Drain, Server
from app.api.errors import install_errors
from app.api.guard import Guard
from app.api.key_entries import Key, KeysRefused, keys_of, refuse_twice
from app.api.keys import Door, is_loopback
from app.api.metrics import Metrics
from app.api.overload import Gate
from app.api.serving import Serving
from app.engine.automerge import AutoMerge
from app.engine.engine import Engine
from app.engine.fetch import Fetcher
from app.engine.install import Installer
from app.engine.load import make_loader
from app.engine.tokenizer import load_tokenizer
from app.engine.watch import Folders, look, sync_at_start, watch
from app.engine.watchdog import watch_forwards
from app.logs import log_config
from app.model import kernel, machine
from app.model.base_files import BaseRefused, find_base
from app.model.embedded import EmbeddedBaseMissing
from app.model.encoder import DTYPES, load_encoder
from app.settings import Settings

log = logging.getLogger(__name__)
CPU_BATCH_TOKENS = 1024  # docs/decisions/0003: more gains nothing and costs latency
CPU_BATCHES = 4  # at the same time, where there are as many cores (docs/decisions/0006)
GPU_BATCH_TOKENS = 16_384
LAST_WORDS_S = 2  # for answers on their way out, and what the deadline cut off
BACKLOG = 2048
FULL_COLLECTIONS = 1000  # one in so many: it stops everything for 0.15 s while a backlog waits


class StartRefused(Exception):
    """The server cannot start, with the reason in words."""


def build(settings: Settings) -> FastAPI:
    """The whole app; all its state is made in the lifespan and lives on the app.

    The lifespan raises StartRefused.
    """
    metrics = Metrics(CollectorRegistry())
    keys, drain = _keys(settings), Drain()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _alone(settings.store) as held:
            folders = await asyncio.to_thread(look, settings.adapters_dir)
            serving = await asyncio.to_thread(
                _load, settings, metrics, drain, keyed=bool(keys), may_write=held
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
    )
    for room in (inference, adapters, versions, dialects, tei, health):
        app.include_router(room.router)
    install_errors(app)
    app.add_middleware(Gate)
    app.add_middleware(Door, keys=keys, loopback=is_loopback(settings.host))
    app.add_middleware(
        Guard,
        metrics=metrics,
        drain=drain,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_adapter_bytes,
    )
    if origins := _listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.state.drain = drain
    return app


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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
        serving.automerge.run(),
    )
    tasks = [asyncio.create_task(work) for work in works]
    yield
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _load(
    settings: Settings, metrics: Metrics, drain: Drain, *, keyed: bool, may_write: bool
) -> Serving:
    """Store, base, tokenizer, engine, installer. Blocks. Raises StartRefused."""
    device = _device(settings.device)
    dtype = DTYPES["float32" if settings.dtype == "auto" else settings.dtype]
    cores = machine.cores()
    torch.set_num_threads(1)  # on all threads but the model's: OpenMP sleeps where teams are many
    compiling = threading.Thread(target=kernel.prepare)  # seconds, at an installation's first start
    compiling.start()
    try:
        store = Store(settings.store, may_write=may_write)
        files = find_base(settings.model, settings.model_revision)
        encoder = load_encoder(files, device, dtype)
        tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    except (BaseRefused, EmbeddedBaseMissing, StoreUnusable) as error:
        raise StartRefused(str(error)) from error
    compiling.join()
    default_budget = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    engine = Engine(
        encoder,
        settings.max_batch_tokens or default_budget,
        settings.max_queue_tokens,
        threads=min(CPU_BATCHES, cores) if device.type == "cpu" else 1,
        cores=cores,
    )
    engine.on_batch = metrics.batch
    budget = settings.adapter_memory_bytes
    registry = Registry(Residents(machine.free_memory(device) // 2 if budget is None else budget))
    loader = make_loader(engine, tokenizer)
    fetcher = Fetcher(store, registry, loader)
    installer = Installer(
        store,
        registry,
        loader,
        fetcher,
        settings.max_adapter_bytes,
        settings.merge_memory_bytes,
        settings.keep_versions,
        Sources(tuple(map(Path, _listed(settings.source_dirs))), settings.allow_hub),
    )
    queue = engine.queue
    metrics.watch("bert_lora_queue_tokens", "Tokens waiting.", lambda: queue.tokens)
    metrics.watch("bert_lora_adapters", "Adapters served.", lambda: len(registry.names))
    residents = registry.residents
    metrics.watch("bert_lora_resident_adapters", "Versions in memory.", lambda: len(residents))
    metrics.watch("bert_lora_resident_bytes", "Memory of those.", lambda: residents.bytes)
    metrics.watch("bert_lora_adapter_hits", "Found in memory.", lambda: residents.hits)
    metrics.watch("bert_lora_adapter_misses", "Loaded for a request.", lambda: residents.misses)
    metrics.watch(
        "bert_lora_merged_bytes", "Memory of merged copies.", lambda: registry.merged_bytes
    )

    def may_merge(name: str) -> bool:
        found = registry.names.get(name)
        return found is not None and (found.merge or settings.merge) == "auto"

    automerge = AutoMerge(
        may_merge, lambda name: name in registry.merged, installer.merge, installer.unmerge
    )
    return Serving(
        engine,
        tokenizer,
        registry,
        fetcher,
        installer,
        automerge,
        metrics,
        settings.max_client_batch,
        keyed=keyed,
        drain=drain,
    )


def _device(asked: str) -> torch.device:
    """Raises StartRefused for a GPU that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise StartRefused(f"DEVICE={asked} is no device: auto, cpu, cuda or cuda:n") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartRefused(f"DEVICE={asked}, but torch sees {torch.cuda.device_count()} GPUs")
    return device


def _base(serving: Serving) -> str:
    encoder = serving.engine.encoder
    return f"{encoder.files.id} ({encoder.base.model_type}, {encoder.device}, {encoder.dtype})"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is finished. Raises StartRefused."""
    logging.config.dictConfig(log_config(settings.log_format))
    machine.keep_memory()
    sockets = _listen(settings)  # before what takes seconds, and answered after it
    app = build(settings)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    server = Server(config, app.state.drain, settings.drain_seconds)
    with asyncio.Runner(
        loop_factory=config.get_loop_factory()
    ) as runner:  # uvloop's where there is one
        runner.run(_serve(app, server, sockets))


def _listen(settings: Settings) -> list[socket.socket]:
    """Raises StartRefused for an address that cannot be had."""
    try:
        return listen(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(settings.host, settings.port, error) from None


def _cannot_listen(host: str, port: int, error: Exception) -> StartRefused:
    why = getattr(error, "strerror", None) or error
    return StartRefused(
        f"{host}:{port} cannot be listened on ({why}): stop what listens there, or set another "
        "HOST or PORT"
    )


async def _serve(app: FastAPI, server: Server, sockets: list[socket.socket]) -> None:
    """The lifespan is ours and not uvicorn's, so that a refusal to start is one line."""
    async with app.router.lifespan_context(app):
        gc.collect()
        gc.freeze()  # torch's and transformers' objects are here to stay: looking at them takes 0.2 s
        gc.set_threshold(700, 10, FULL_COLLECTIONS)
        for listening in sockets:
            host, port = listening.getsockname()[:2]
            try:
                listening.listen(BACKLOG)  # two that bound at once learn of each other here
            except OSError as error:
                raise _cannot_listen(host, port, error) from None
            log.info("listening on http://%s:%d", host, port)
        await server.serve(sockets)
