"""The app under uvicorn on a free port, in a thread: what a client meets, minus the process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from app.api.connection import BoundedProtocol
from app.main import build
from app.settings import Settings

START_S = 120


@dataclass(eq=False)
class LiveServer:
    """client: to the server's address. url: without a slash at the end."""

    url: str
    client: httpx.Client
    app: Any
    _server: uvicorn.Server
    _thread: threading.Thread
    _error: list[BaseException]

    def stop(self) -> None:
        """Let it drain and end."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join(60)

    def post(self, path: str, **body: Any) -> Any:
        """POST a JSON body; the answer parsed, whatever its status."""
        return self.client.post(path, json=body).json()


def live_server(**settings: Any) -> LiveServer:
    """Start and wait until it answers. Raises what the lifespan raised."""
    app = build(Settings(**settings))
    listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms each
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app, http=BoundedProtocol, lifespan="off", log_config=None, timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    errors: list[BaseException] = []

    async def main() -> None:
        async with app.router.lifespan_context(app):
            ready.set()
            await server.serve([listening])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(main())
        except BaseException as error:
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not ready.wait(START_S):
        raise TimeoutError("the server did not start")
    if errors:
        listening.close()
        raise errors[0]
    client = httpx.Client(base_url=url, timeout=60)
    return LiveServer(url, client, app, server, thread, errors)


def eventually(holds: Callable[[], bool], within_s: float = 20) -> bool:
    """Whether it holds before the time is over."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False
