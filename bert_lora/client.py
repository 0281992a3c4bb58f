"""Client: a server's calls for plain code, notebooks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from bert_lora.async_client import AsyncClient
from bert_lora.calls import Calls
from bert_lora.loop import LoopThread
from bert_lora.options import Adapter, ComposeOptions, Versions


class Client(Calls):
    """A server's calls; thread-safe.

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
        self._client = AsyncClient(
            url,
            api_key=api_key,
            adapter=adapter,
            at_once=at_once,
            timeout=timeout,
            patience=patience,
        )
        super().__init__(self._client, LoopThread())

    def info(self) -> dict[str, Any]:
        """The base, its adapters and the server's limits: GET /info."""
        return self._run(self._client.info())

    def get(self, name: str) -> Adapter:
        """One adapter."""
        return self._run(self._client.get(name))

    def versions(self, name: str) -> Versions:
        """What the name has held, oldest first: `version`, `created`, `by`, `how`, `current`."""
        return self._run(self._client.versions(name))

    def rollback(self, name: str, version: str | None = None) -> Adapter:
        """Point the name at an earlier version; none: the one before."""
        return self._run(self._client.rollback(name, version))

    def merge(self, name: str) -> Adapter:
        """Give the adapter its own merged copy of the layers it changes: memory for speed."""
        return self._run(self._client.merge(name))

    def unmerge(self, name: str) -> Adapter:
        """Drop the merged copy."""
        return self._run(self._client.unmerge(name))

    def compose(
        self, name: str, adapters: Sequence[str], **options: Unpack[ComposeOptions]
    ) -> Adapter:
        """Keep a combination of adapters, each a name or name@version, under a name."""
        return self._run(self._client.compose(name, adapters, **options))

    def canary(
        self, name: str, version: str, percent: float, *, sticky_by: str | None = None
    ) -> Adapter:
        """Let another version that the name holds answer a share of its requests."""
        return self._run(self._client.canary(name, version, percent, sticky_by=sticky_by))

    def promote(self, name: str) -> Adapter:
        """Make the version on trial the current one."""
        return self._run(self._client.promote(name))

    def abort(self, name: str) -> Adapter:
        """End the trial; the current version stays."""
        return self._run(self._client.abort(name))
