"""AsyncClient: a server's calls for code that is async itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import httpx2
import orjson

from bert_lora.async_calls import Answer, AskPiece, AsyncCalls
from bert_lora.errors import BertLoraError, Conflict, Unavailable
from bert_lora.http import NotConnected, Server
from bert_lora.options import (
    Adapter,
    Adapters,
    ClassifyOptions,
    ComposeOptions,
    EmbedOptions,
    PutOptions,
    RerankOptions,
    Versions,
    members,
    put_query,
)
from bert_lora.revisions import Revisions, header
from bert_lora.splitting import Piece
from bert_lora.uploads import upload_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

JSON, OCTETS = "application/json", "application/octet-stream"
PAGE = 1000  # adapters of one answer


class AsyncClient(AsyncCalls):
    """A server's calls.

    adapter: of calls that name none. at_once: how many requests may be under way. timeout: seconds
    of one request. patience: seconds that a request may take with all its repetitions; long enough
    for a server to be started again.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        adapter: str | None = None,
        at_once: int = 8,
        timeout: float = 120,
        patience: float = 300,
    ) -> None:
        super().__init__(adapter, at_once, patience)
        self._server = Server(url, api_key, timeout)
        self._revisions = Revisions()
        self._info: dict[str, Any] | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._server.close()

    async def info(self) -> dict[str, Any]:
        """The base, its adapters and the server's limits: GET /info."""
        answer = await self.pace.run(partial(self._server.send, "GET", "/info"))
        return dict(orjson.loads(answer.content))

    async def list(self) -> Adapters:
        """All adapters that the key may use, by name."""
        every: Adapters = []
        path: str | None = f"/adapters?limit={PAGE}"
        while path is not None:  # a page that is not the last may have fewer names, or none
            answer = await self.pace.run(partial(self._server.send, "GET", path))
            every += orjson.loads(answer.content)
            path = answer.links.get("next", {}).get("url")
        return every

    async def get(self, name: str) -> Adapter:
        """One adapter."""
        return dict(await self._read(name))

    async def versions(self, name: str) -> Versions:
        """What the name has held, oldest first: `version`, `created`, `by`, `how`, `current`."""
        versions: Versions = await self._read(name, "/versions")
        return versions

    async def put(self, name: str, source: Any, **options: Unpack[PutOptions]) -> Adapter:
        """Serve an adapter by that name, or replace it; the answer is the adapter object.

        source: a PEFT folder, a file (.safetensors, tar, zip), a PEFT model, or a module that holds
        trained LoRA tensors. The same bytes again change nothing. Raises BertLoraError.
        """
        query = put_query(options)
        with ExitStack() as made:
            file = await asyncio.to_thread(made.enter_context, upload_file(source))
            send = partial(self._server.send, "PUT", f"/adapters/{name}", file=file, query=query)
            # Twice is as once, unless others change the name in between.
            answer = await self.pace.run(send, lambda error: not is_unsure(error))
        return self._changed(name, answer)

    async def delete(self, name: str) -> None:
        """Stop serving the name."""
        answer = await self.pace.run(
            lambda: self._server.send("DELETE", f"/adapters/{name}"), was_not_done
        )
        self._revisions.note(name, answer.headers.get("X-Revision"))

    async def rollback(self, name: str, version: str | None = None) -> Adapter:
        """Point the name at an earlier version; none: the one before."""
        return await self._change(name, "rollback", {"version": version} if version else None)

    async def merge(self, name: str) -> Adapter:
        """Give the adapter its own merged copy of the layers it changes: memory for speed."""
        return await self._change(name, "merge")

    async def unmerge(self, name: str) -> Adapter:
        """Drop the merged copy."""
        return await self._change(name, "unmerge")

    async def compose(
        self, name: str, adapters: Sequence[str], **options: Unpack[ComposeOptions]
    ) -> Adapter:
        """Keep a combination of adapters, each a name or name@version, under a name."""
        body = {"adapters": list(adapters), **options}
        return await self._change(name, "compose", body, adapters)

    async def canary(
        self, name: str, version: str, percent: float, *, sticky_by: str | None = None
    ) -> Adapter:
        """Let another version that the name holds answer a share of its requests."""
        trial = {"version": version, "percent": percent}
        return await self._change(
            name, "canary", trial | ({"sticky_by": sticky_by} if sticky_by else {})
        )

    async def promote(self, name: str) -> Adapter:
        """Make the version on trial the current one."""
        return await self._change(name, "promote")

    async def abort(self, name: str) -> Adapter:
        """End the trial; the current version stays."""
        return await self._change(name, "abort")

    async def most_texts(self) -> int:
        """How many texts one request may have; asked once."""
        return int((await self._limits())["max_client_batch_size"])

    async def hidden(self) -> int:
        """How wide the base's vectors are."""
        return int((await self._limits())["hidden_size"])

    async def _limits(self) -> dict[str, Any]:
        if self._info is None:
            self._info = await self.info()
        return self._info

    def embedding(self, options: EmbedOptions) -> AskPiece:
        """What answers a piece with vectors."""

        async def ask(piece: Piece) -> Answer:
            answer = await self._ask("/embed", {"inputs": piece.texts}, options, piece, OCTETS)
            rows = _vectors(answer.content, answer.headers["X-Shape"])
            return Answer(rows, answer.headers["X-Embedding-Space"])

        return ask

    def labelling(self, options: ClassifyOptions) -> AskPiece:
        """What answers a piece with labels."""

        async def ask(piece: Piece) -> Answer:
            answer = await self._ask("/classify", {"inputs": piece.texts}, options, piece)
            return Answer(orjson.loads(answer.content), answer.headers["X-Adapter"])

        return ask

    def scoring(self, query: str, options: RerankOptions) -> AskPiece:
        """What answers a piece with one score for each text."""

        async def ask(piece: Piece) -> Answer:
            body = {"query": query, "texts": piece.texts}
            answer = await self._ask("/rerank", body, options, piece)
            best = orjson.loads(answer.content)
            scores = {place["index"]: place["score"] for place in best}
            rows = [scores[i] for i in range(len(piece.texts))]
            return Answer(rows, answer.headers["X-Adapter"])

        return ask

    async def _ask(
        self, path: str, body: dict[str, Any], options: Any, piece: Piece, accept: str = JSON
    ) -> httpx2.Response:
        """The answer to one piece."""
        adapter = options.get("adapter") or self.adapter
        body = body | members(options)
        query = {}
        if piece.adapters is not None:
            body["adapters"] = piece.adapters
        elif adapter is not None:
            query["adapter"] = adapter
        headers = {"Accept": accept, "X-Request-Timeout": f"{self._server.timeout_s:g}"}
        send = partial(self._server.send, "POST", path, json=body, query=query)
        return await self._as_left(body.get("adapters") or query.values(), send, headers)

    async def _read(self, name: str, what: str = "") -> Any:
        """What the server says of an adapter."""
        send = partial(self._server.send, "GET", f"/adapters/{name}{what}")
        answer = await self.pace.run(lambda: self._as_left([name], send, {}))
        return orjson.loads(answer.content)

    async def _as_left(
        self,
        adapters: Iterable[str | None],
        send: Callable[..., Awaitable[httpx2.Response]],
        headers: dict[str, str],
    ) -> httpx2.Response:
        """The answer of a server that knows these as this client has left them, or later."""
        at_least = self._revisions.within(adapters)
        try:
            return await send(headers=headers | header(at_least))
        except Conflict as error:
            if not at_least or error.status != 412:
                raise
            self._revisions.forget(at_least)  # the store itself has gone back
        return await send(headers=headers)

    async def _change(
        self, name: str, verb: str, body: Any = None, of: Iterable[str] = ()
    ) -> Adapter:
        """of: the adapters that the change is made of."""
        send = partial(self._server.send, "POST", f"/adapters/{name}/{verb}", json=body)
        answer = await self.pace.run(lambda: self._as_left(of, send, {}), was_not_done)
        return self._changed(name, answer)

    def _changed(self, name: str, answer: httpx2.Response) -> Adapter:
        adapter = dict(orjson.loads(answer.content))
        self._revisions.note(name, adapter.get("revision"))
        return adapter


def is_unsure(error: BertLoraError) -> bool:
    """Whether the server itself does not know if it made a change."""
    return isinstance(error, Unavailable) and error.code == "change_unsure"


def was_not_done(error: BertLoraError) -> bool:
    """Whether a change that ended so was certainly not made, so that it may be asked for again."""
    if isinstance(error, Unavailable):  # a proxy's own 503 may come after the server has made it
        told = "error_type" in error.details and not is_unsure(error)
        return error.status == 429 or (error.status == 503 and told)
    return isinstance(error, NotConnected)


def _vectors(content: bytes, shape: str) -> NDArray[np.float32]:
    """Little-endian float32 [N, H], as X-Shape says."""
    import numpy as np  # 0.2 s

    return np.frombuffer(content, "<f4").reshape(tuple(map(int, shape.split(","))))
