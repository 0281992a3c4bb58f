"""An HTTP proxy before a bucket that misbehaves as a test tells it, and counts what is asked.

A request goes on with the Host that the client has signed, so that its signature holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal, assert_never
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}
KEY = re.compile("<Key>([^<]*)</Key>")
OTHER_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class Fault:
    """What happens to the requests it is aimed at; all others pass.

    kind: "slow": the answer comes `seconds` later. "late": the request reaches the bucket `seconds`
    later, even if the client has gone by then. "hung": no answer ever, and the bucket hears nothing.
    "error": `status`, and the bucket hears nothing. "lost_answer": the bucket does as it is asked,
    and the client gets `status`. "cut_connection": the same, and the client gets nothing.
    "cut_body": half of the answer's body, then the connection ends. "corrupt": one bit of the
    answer's body is flipped. "wrong_etag": the answer has another ETag than the object.

    method: "" any, "LIST" for a GET that lists, "DELETE" also for a POST that deletes. key: how the object's key begins behind the
    prefix. every: each such one; 3: the third, the sixth, …
    """

    kind: Literal[
        "slow",
        "late",
        "hung",
        "error",
        "lost_answer",
        "cut_connection",
        "cut_body",
        "corrupt",
        "wrong_etag",
    ]
    method: str = ""
    key: str = ""
    every: int = 1
    seconds: float = 0.0
    status: int = 500


@dataclass
class Answer:
    """The bucket's, whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Unreliable:
    """A context manager. counts: requests by method and kind of object: "PUT", "names".

    Counted is what came, whether the bucket heard of it or not.
    """

    def __init__(self, endpoint: str, bucket: str, prefix: str) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._bucket, self._begin = endpoint, f"{bucket}/{prefix}/"
        self._fault: Fault | None = None
        self._aimed = 0
        self._random = random.Random(0)
        # Bound and not listening: the port is ours, also while connections are refused.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._port.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: asyncio.Server | None = None

    def __enter__(self) -> Unreliable:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._port.close()

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Meanwhile the fault; before and after it all pass."""
        self._aimed, self._fault = 0, fault
        try:
            yield
        finally:
            self._fault = None

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Meanwhile open connections are cut, and new ones refused."""
        self._do(self._refuse())
        try:
            yield
        finally:
            self._do(self._listen())

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _open(self) -> None:
        self._server = web.Server(self._serve)
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        await self._listen()

    async def _listen(self) -> None:
        address = self._port.getsockname()
        self._listening = await self._loop.create_server(self._server, *address, backlog=256)

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _close(self) -> None:
        await self._refuse()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self._client.close()
        await asyncio.sleep(0.01)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        method, key = self._asked(request, body)
        self.counts[method, key.split("/")[0]] += 1
        fault = self._aimed_at(method, key)
        match fault.kind if fault else None:
            case "hung":
                await asyncio.Event().wait()
            case "error":
                return web.Response(status=fault.status)
            case "late":
                await asyncio.sleep(fault.seconds)
            case _:
                pass
        answer = await self._passed_on(request, body)
        return await self._failed(fault, request, answer) if fault else self._whole(answer)

    def _asked(self, request: web.BaseRequest, body: bytes) -> tuple[str, str]:
        """The method and the object's key behind the prefix; of a list: how the keys begin."""
        query, method = request.rel_url.query, request.method
        path = unquote(request.rel_url.raw_path).strip("/")
        if method == "GET" and "list-type" in query:
            method, path = "LIST", f"{path}/{query.get('prefix', '')}"
        elif method == "POST" and "delete" in query:  # of many: the first speaks for all
            method, path = "DELETE", f"{path}/{KEY.findall(body.decode())[0]}"
        return method, path.removeprefix(self._begin)

    def _aimed_at(self, method: str, key: str) -> Fault | None:
        fault = self._fault
        if fault is None or fault.method not in ("", method) or not key.startswith(fault.key):
            return None
        self._aimed += 1
        return fault if self._aimed % fault.every == 0 else None

    async def _passed_on(self, request: web.BaseRequest, body: bytes) -> Answer:
        url = URL(self._bucket + request.raw_path, encoded=True)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            return Answer(answer.status, list(answer.headers.items()), await answer.read())

    async def _failed(
        self, fault: Fault, request: web.BaseRequest, answer: Answer
    ) -> web.StreamResponse:
        match fault.kind:
            case "slow":
                await asyncio.sleep(fault.seconds)
            case "lost_answer":
                return web.Response(status=fault.status)
            case "cut_connection":
                return await self._cut(request, None)
            case "cut_body":
                return await self._cut(request, answer)
            case "corrupt":
                answer.body = self._flipped(answer.body)
            case "wrong_etag":
                answer.headers = [
                    (k, OTHER_ETAG if k.lower() == "etag" else v) for k, v in answer.headers
                ]
            case "late" | "hung" | "error":
                pass
            case kind:
                assert_never(kind)
        return self._whole(answer)

    async def _cut(self, request: web.BaseRequest, answer: Answer | None) -> web.StreamResponse:
        """Half of the body, or nothing at all."""
        response = web.StreamResponse(status=answer.status if answer else 500)
        if answer is not None:
            response.headers.extend(_end_to_end(answer))
            response.content_length = len(answer.body)
            await response.prepare(request)
            await response.write(answer.body[: len(answer.body) // 2])
        if request.transport is not None:
            request.transport.close()  # once what was written has left
        return response

    def _flipped(self, body: bytes) -> bytes:
        if not body:
            return body
        at, bit = self._random.randrange(len(body)), 1 << self._random.randrange(8)
        return body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :]

    def _whole(self, answer: Answer) -> web.Response:
        return web.Response(status=answer.status, headers=_end_to_end(answer), body=answer.body)


def _end_to_end(answer: Answer) -> list[tuple[str, str]]:
    return [(k, v) for k, v in answer.headers if k.lower() not in HOP_BY_HOP]
