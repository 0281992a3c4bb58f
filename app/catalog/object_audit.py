"""A bucket's audit: an object for each record, the newest first in a listing.

    audit/<what is left of the time>-<nonce>    one record

Records of several machines are in the order of their clocks. Knows records; knows nothing of what
they say.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import orjson

from app.catalog.bucket import LISTED, Bucket
from app.catalog.store import Json, StoreUnavailable

FOLDER = "audit/"
MOST = 200_000  # records that are kept
LOOKED_AT = 10_000  # of the newest, for one answer: each is an object
READ = 16  # at the same time
WAITING = 1_000  # records that the bucket has not taken; then the oldest go
END_NS = 10**20  # the time in ns, taken from it, sorts the newest first


class ObjectAudit:
    """Keeps what the bucket has not taken, until it does. Several threads may use it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=WAITING)  # paths and records
        self._flusher = ThreadPoolExecutor(1, "audit")
        self._flushing: Future[None] | None = None

    def append(self, record: Json) -> None:
        """As store.Store.append_audit. flush_aside() writes later what cannot be now."""
        id_ = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        path, body = _path(id_), json.dumps({"id": id_, **record}).encode()
        try:
            if self._flushing is not None and not self._flushing.done():  # perhaps it hangs
                raise StoreUnavailable("earlier records are being written")
            self._bucket.overwrite(path, body)
        except StoreUnavailable:
            self._waiting.append((path, body))
            raise

    def flush_aside(self, most: int) -> None:
        """Write some of what waits, again where it may have been written, and wait for none of it.
        One thread at a time may ask.
        """
        if self._waiting and (self._flushing is None or self._flushing.done()):
            self._flushing = self._flusher.submit(self._flush, most)

    def _flush(self, most: int) -> None:
        for _ in range(min(most, len(self._waiting))):
            path, body = self._waiting.popleft()
            try:
                self._bucket.overwrite(path, body)
            except StoreUnavailable:  # the next time
                if len(self._waiting) < WAITING:
                    self._waiting.appendleft((path, body))
                return

    def read(self, before: str, most: int, wanted: Callable[[Json], bool]) -> list[Json]:
        """As store.Store.read_audit."""
        newest = islice(self._newest_first(before), LOOKED_AT)
        return list(islice(filter(wanted, newest), most))

    def _newest_first(self, before: str) -> Iterator[Json]:
        paths = (one.path for one in self._bucket.list(FOLDER, _path(before) if before else ""))
        with ThreadPoolExecutor(READ) as pool:
            while some := list(islice(paths, READ)):
                yield from (record for record in pool.map(self._record, some) if record)

    def _record(self, path: str) -> Json | None:
        answer = self._bucket.get(path)
        with contextlib.suppress(ValueError):
            record = orjson.loads(answer[0]) if answer else None
            return record if isinstance(record, dict) and "id" in record else None
        return None

    def trim(self) -> None:
        """Remove the oldest records where there are too many."""
        paths = islice((one.path for one in self._bucket.list(FOLDER)), MOST, None)
        while some := list(islice(paths, LISTED)):
            self._bucket.delete(some)


def _path(id_: str) -> str:
    """Of a record's id; ids that nobody has given sort somewhere."""
    time_ns, _, nonce = id_.partition("-")
    left = END_NS - int(time_ns) if time_ns.isdecimal() else END_NS
    return f"{FOLDER}{left:020d}-{nonce}"
