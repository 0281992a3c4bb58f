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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import orjson

from app.catalog.bucket import LISTED, Bucket
from app.catalog.store import Json

FOLDER = "audit/"
MOST = 200_000  # records that are kept
LOOKED_AT = 10_000  # of the newest, for one answer: each is an object
READ = 16  # at the same time
END_NS = 10**20  # the time in ns, taken from it, sorts the newest first


class ObjectAudit:
    """Keeps nothing between calls."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def append(self, record: Json) -> None:
        """As store.Store.append_audit."""
        id_ = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        self._bucket.overwrite(_path(id_), json.dumps({"id": id_, **record}).encode())

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
