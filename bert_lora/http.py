"""One request to a server and its answer, or an error of ours. Alone knows httpx."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import orjson

from bert_lora.errors import Unreachable, refused_body

CONNECT_S = 5.0
CHUNK_BYTES = 1 << 20
HERE = ("localhost", "127.0.0.1", "::1")  # no proxy leads to this machine


class Server:
    """A server's address. timeout_s: of one request; api_key: sent with each."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        address = _address(url)
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
            trust_env=address.host not in HERE,
            verify=address.scheme != "http",  # else 0.1 s of reading certificates for nothing
        )

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        file: Path | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """The answer. Raises Unreachable, Refused."""
        headers = dict(headers or {})
        content: bytes | AsyncIterator[bytes] | None = None
        if json is not None:
            headers["Content-Type"] = "application/json"
            content = orjson.dumps(json)
        elif file is not None:
            headers["Content-Type"] = "application/octet-stream"
            content = _chunks(file)
        try:
            answer = await self._client.request(
                method, path, content=content, headers=headers, params=query or None
            )
        except httpx2.ConnectError as error:
            raise NotConnected(f"no server answers at {self.url}: {error}") from None
        except httpx2.TimeoutException as error:
            raise Unreachable(f"{self.url} did not answer in time: {error!r}") from None
        except httpx2.TransportError as error:
            raise Unreachable(f"the connection to {self.url} was lost: {error!r}") from None
        if not answer.is_success:
            raise refused_body(answer.status_code, answer.content, answer.headers)
        if not answer.headers.get("X-Request-Id"):
            raise Unreachable(f"what answers at {self.url} is no bert-lora-server")
        return answer

    async def close(self) -> None:
        """Its connections."""
        await self._client.aclose()


class NotConnected(Unreachable):
    """The request was never sent, so that it may be sent again whatever it changes."""


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as body:
        while chunk := body.read(CHUNK_BYTES):
            yield chunk


def _address(url: str) -> httpx2.URL:
    """Raises Unreachable for what is no address."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Unreachable(f"{url!r} is no address of a server: it is like http://127.0.0.1:8080")
    return parsed
