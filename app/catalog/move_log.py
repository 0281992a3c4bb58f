"""Which names have moved lately, in one small object that every replica reads each second.

    epoch    {"moved": [[nonce, name], …], "sha256"}

Who has seen the log up to a nonce learns the names that have moved since; who was away for too
long, or has seen another log, learns only that any may have. Knows names; knows not where they
point.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import threading
import time
from dataclasses import dataclass

from app.catalog.bucket import Bucket, Conflict, Tag
from app.catalog.object_names import UNREADABLE
from app.catalog.pointer import digest_of
from app.catalog.store import Moves, StoreUnavailable

log = logging.getLogger(__name__)
PATH = "epoch"
KEPT = 1_000  # moves; some 50 KB
TRIES = 8


@dataclass(frozen=True)
class _Log:
    """moved: a nonce of each write, and a name that it told; the newest last."""

    moved: tuple[tuple[str, str], ...] = ()

    @property
    def token(self) -> str:
        return self.moved[-1][0] if self.moved else ""

    def since(self, token: str) -> frozenset[str] | None:
        """The names that have moved since; None: any may have."""
        if token == self.token:
            return frozenset()
        last = max((i for i, (nonce, _) in enumerate(self.moved) if nonce == token), default=None)
        return None if last is None else frozenset(name for _, name in self.moved[last + 1 :])

    def with_moved(self, names: list[str]) -> _Log:
        nonce = secrets.token_hex(8)
        return _Log((*self.moved, *((nonce, name) for name in names))[-KEPT:])


class MoveLog:
    """A move that could not be written down is written down with the next, or when it is read."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._unwritten: list[str] = []  # behind _adding
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._read: tuple[_Log, Tag] | None = None

    def write(self, name: str) -> None:
        """The name has moved. Raises nothing: it has, whether that can be told or not."""
        with self._adding:
            self._unwritten.append(name)
        try:
            self._flush()
        except StoreUnavailable as error:
            why = {"name": name, "why": str(error)}
            log.warning("that %(name)s has moved is told later: %(why)s", why)

    def _flush(self) -> None:
        """One write for all who wait for it."""
        with self._writing:
            with self._adding:
                names, self._unwritten = self._unwritten, []
            if not names:
                return
            try:
                self._append(names)
            except BaseException:
                with self._adding:
                    self._unwritten = names + self._unwritten
                raise

    def _append(self, names: list[str]) -> None:
        for attempt in range(TRIES):
            seen = self._fetch()
            before, tag = seen or (_Log(), None)
            after = before.with_moved(names)
            try:
                written = self._bucket.put(PATH, _to_json(after), tag)
            except Conflict:
                time.sleep(random.uniform(0, 0.01 * 2**attempt))
                continue
            self._read = after, written
            return
        raise StoreUnavailable(f"{PATH} is written by too many at once")

    def since(self, token: str) -> Moves:
        """As store.Store.moves."""
        if self._unwritten:
            self._flush()
        seen = self._fetch()
        now = seen[0] if seen else _Log()
        return Moves(now.token, now.since(token))

    def _fetch(self) -> tuple[_Log, Tag] | None:
        """None: nothing has ever moved. Raises StoreUnavailable."""
        known = self._read
        answer = self._bucket.get_if_changed(PATH, known[1] if known else None)
        if answer is None:
            self._bucket.refuse_missing()
            return None
        body, tag = answer
        if known is not None and tag is known[1]:
            return known
        self._read = _from_json(body), tag
        return self._read


def _to_json(written: _Log) -> bytes:
    return json.dumps({**vars(written), "sha256": digest_of(vars(written))}).encode()


def _from_json(body: bytes) -> _Log:
    """What nobody has written counts as another log: any name may have moved."""
    try:
        raw = json.loads(body)
        if raw.pop("sha256") != digest_of(raw):
            raise ValueError("it is not what was written")
        return _Log(tuple((str(nonce), str(name)) for nonce, name in raw["moved"]))
    except UNREADABLE:
        return _Log(((secrets.token_hex(8), ""),))
