"""Which versions of a bucket no name holds any more, and since when; one server at a time looks.

    collector    which server that is

No mark is written: who collects remembers, by its own clock, since when it has seen a version's
manifest unchanged and no name that holds it. Of all servers one does, for economy alone: each
removal is a compare-and-swap.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from app.catalog.bucket import Bucket, Conflict, Tag
from app.catalog.object_audit import ObjectAudit
from app.catalog.object_names import ObjectNames
from app.catalog.object_versions import ObjectVersions

PATH = "collector"
ABSENT_S = 180.0  # without a sign of the server that collects, before another one does
SWEEP_S = 86_400.0


class _Since(NamedTuple):
    """A manifest, and when it was first seen so."""

    tag: Tag
    at: float


class ObjectCollector:
    """Several threads may ask: one after the other."""

    def __init__(
        self,
        bucket: Bucket,
        names: ObjectNames,
        versions: ObjectVersions,
        audit: ObjectAudit,
        on_remove: Callable[[str], None],
    ) -> None:
        """on_remove: told each version that goes."""
        self._bucket, self._names, self._versions, self._audit = bucket, names, versions, audit
        self._on_remove = on_remove
        self._me = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._unheld: dict[str, _Since] = {}
        self._other: _Since | None = None  # the last sign of another server that collects
        self._swept: float | None = None

    def collect(self, older_than_s: float) -> bool:
        """As store.Store.collect."""
        with self._lock:
            if not self._is_my_turn():
                return True
            now = time.monotonic()
            since = {
                version: seen if seen and seen.tag == tag else _Since(tag, now)
                for version, tag in self._versions.live().items()
                for seen in [self._unheld.get(version)]
            }
            due = {
                v
                for v, seen in since.items()
                if self._unheld.get(v) is seen and now - seen.at >= older_than_s
            }
            held = self._names.held_versions()  # after what is due has been settled
            if held is None:
                return False
            for version in due - held:
                self._versions.remove(version, since[version].tag)
                self._on_remove(version)
            self._unheld = {v: seen for v, seen in since.items() if v not in held | due}
            self._sweep()
            return bool(self._unheld)

    def _is_my_turn(self) -> bool:
        answer = self._bucket.get(PATH)
        seen = answer[1] if answer else None
        if answer is not None and not answer[0].startswith(self._me.encode()):
            if self._other is None or self._other.tag != answer[1]:
                self._other = _Since(answer[1], time.monotonic())
            if time.monotonic() - self._other.at < ABSENT_S:
                return False
        try:
            self._bucket.put(PATH, f"{self._me} {secrets.token_hex(4)}".encode(), seen)
        except Conflict:
            return False
        return True

    def _sweep(self) -> None:
        """Once a day what broken-off uploads have left, and the oldest of the audit."""
        if self._swept is None or time.monotonic() - self._swept > SWEEP_S:
            self._versions.remove_orphans(self._bucket.modified(PATH))
            self._audit.trim()
            self._swept = time.monotonic()
