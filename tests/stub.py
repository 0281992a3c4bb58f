"""An HTTP server that misbehaves on purpose: slow, busy or silent, as a test tells it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

Answer = tuple[str, str]  # the status line's end, header lines


class Stub:
    """bodies, heads: what came, in order. hold_until: none is answered before so many have come."""

    def __init__(self, answer: Callable[[Stub, bytes], Answer], hold_until: int = 0) -> None:
        self.bodies: list[bytes] = []
        self.heads: list[str] = []
        self._answer, self._hold_until = answer, hold_until
        self._loop = asyncio.new_event_loop()
        self._enough = asyncio.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._listening)
        )
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                status, more = self._answer(self, body)
                self.bodies.append(body)
                self.heads.append(head)
                if len(self.bodies) >= self._hold_until:
                    self._enough.set()
                await self._enough.wait()
                writer.write(f"HTTP/1.1 {status}\r\n{more}content-length: 2\r\n\r\n[]".encode())
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
