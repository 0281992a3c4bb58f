"""Who changed what: one line in the log and one record in the audit for each request of a route
that changes names, made or refused.

The record is on the disk before the answer leaves. Who may not change anything cannot fill the
audit: refusals without a key are logged alone, and of a key that may not some an hour are kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import matched_of
from app.api.caller import adapter_of, address_of, name_of
from app.api.serving import Serving
from app.catalog.change import Change, write_down

KEPT_AN_HOUR = 20  # refusals of one key that may not do what it asks for
HOUR_S = 3600


@dataclass(frozen=True)
class RecordChanges:
    """refused: by key, the hour and how many of its refusals were kept in it."""

    app: ASGIApp
    refused: dict[str, tuple[int, int]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        action = matched_of(scope).access.changes if scope["type"] == "http" else None
        if action is None:
            await self.app(scope, receive, send)
            return
        state = scope["state"]
        change = Change(action, None, None, address_of(scope), state["request_id"])
        state["change"] = change
        recorded = False

        async def recording_send(message: Message) -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                await self._record(scope, change)
            await send(message)

        try:
            await self.app(scope, receive, recording_send)
        except BaseException as error:
            if not recorded:  # answered further outside, or by nobody: the server ends
                failed = isinstance(error, Exception)
                why = ("internal", "the server failed") if failed else ("draining", "cut off")
                state["trace"].refusal, state["reason"] = why
                await self._record(scope, change)
            raise

    async def _record(self, scope: Scope, change: Change) -> None:
        state = scope["state"]
        serving: Serving = scope["app"].state.serving
        change.by, change.name = name_of(scope), change.name or adapter_of(scope)
        audited = state.get("admitted", False) or self._kept(change.by)
        error = state["trace"].refusal, state.get("reason")
        ask, store = serving.runtime.fetcher.ask, serving.installer.store
        await ask(write_down, store, change, *error, audited=audited)

    def _kept(self, key: str | None) -> bool:
        """Whether this refusal of a key that may not is one of the hour's first."""
        if key is None:
            return False
        hour = int(time.monotonic() // HOUR_S)
        since, count = self.refused.get(key, (hour, 0))
        count = count + 1 if since == hour else 1
        self.refused[key] = hour, count
        return count <= KEPT_AN_HOUR
