"""From the settings to a listening process, and to its end on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.api.connection import BoundedProtocol, listen
from app.api.draining import Server
from app.assemble import StartRefused
from app.logs import set_up
from app.main import build
from app.model import machine
from app.settings import Settings
from app.start_log import url_of, where_to_begin

log = logging.getLogger(__name__)
LAST_WORDS_S = 2  # for answers on their way out, and what the deadline cut off
BACKLOG = 2048
FULL_COLLECTIONS = 1000  # one in so many: it stops everything for 0.15 s while a backlog waits


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is finished. Raises
    StartRefused.
    """
    prepare(settings)
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
    server = Server(config, app.state.drain, settings.drain_delay, settings.drain_seconds)
    with asyncio.Runner(
        loop_factory=config.get_loop_factory()
    ) as runner:  # uvloop's where there is one
        runner.run(_serve(app, server, sockets))


def prepare(settings: Settings) -> None:
    """The process, before its app is built: what it logs, and the memory that it keeps."""
    set_up(settings.log_format)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    machine.keep_memory()


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """The garbage collector never looks at what is there now, and rarely at all that comes."""
    gc.collect()
    gc.freeze()  # torch's and transformers' objects stay: looking at them takes 0.2 s
    gc.set_threshold(700, 10, FULL_COLLECTIONS)
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()  # else Triton's bindings print what they take for leaks at exit


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
        with collecting_rarely():
            for listening in sockets:
                _begin_to_listen(listening)
            for line, members in where_to_begin(app.state, url_of(sockets[0])):
                log.info(line, members)
            await server.serve(sockets)


def _begin_to_listen(listening: socket.socket) -> None:
    """Raises StartRefused: two that bound at once learn of each other here."""
    host, port = listening.getsockname()[:2]
    try:
        listening.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
