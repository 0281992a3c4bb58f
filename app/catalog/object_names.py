"""A bucket's names: one small object each, moved by compare-and-swap on its ETag and revision.

    names/<name>          where the name points (pointer.py), and who has written that

A live name's object has at least LIVE_BYTES bytes and a tombstone's has fewer, so that a listing
tells them apart. Knows no versions but by their hashes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import orjson

from app.catalog.bucket import Bucket, Conflict, Listed, Tag
from app.catalog.pointer import NewerPointer, Pointer, deleted, from_json, to_json, valid_name
from app.catalog.store import ChangeUnsure, NameUnreadable, StaleRevision, StoreUnavailable

log = logging.getLogger(__name__)
FOLDER, ASIDE = "names/", "damaged/names/"
UNSURE = "the store did not answer: it may have done what was asked; look before you repeat it"
LIVE_BYTES = 1_024
PAGE = 2_000  # names: two answers of the bucket
KEPT = 10_000  # names that were read, some 3 KB each
READERS = 32  # objects that are read at the same time
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class _Found:
    """What one object holds. tag None: there is none. writer: of which move. damaged: its bytes,
    where no server has written them."""

    pointer: Pointer
    tag: Tag | None = None
    writer: str = ""
    damaged: bytes | None = None


class ObjectNames:
    """Keeps what it has read of each name, so that it is sent again only if it has changed."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known: dict[str, _Found] = {}
        self._held: dict[str, tuple[Tag, tuple[str, ...]]] = {}  # of each name, by its object's tag

    def page(self, after: str = "") -> list[str]:
        """As store.Store.names."""
        live = (name_of(one) for one in self._listed(after) if one.size >= LIVE_BYTES)
        return list(islice(live, PAGE))

    def tombstones(self) -> int:
        """As store.Store.tombstones."""
        return sum(one.size < LIVE_BYTES for one in self._listed())

    def _listed(self, after: str = "") -> Iterable[Listed]:
        listed = self._bucket.list(FOLDER, FOLDER + after if after else "")
        return (one for one in listed if valid_name(name_of(one)) and one.path.count("/") == 1)

    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        """As store.Store.look."""
        pointer = self._read(name).pointer
        return seen if seen == pointer else pointer

    def _read(self, name: str) -> _Found:
        """Twice where the first reading is no pointer: it may have changed on its way."""
        found = self._read_once(name)
        if found.damaged is not None:
            found = self._read_once(name)
        if found.damaged is not None:
            where = {"path": FOLDER + name, "store": self._bucket.url}
            if found.tag is None or not found.tag.is_md5_of(found.damaged):
                raise NameUnreadable(
                    f"{FOLDER}{name} in the bucket cannot be read: it is damaged, or was on its "
                    "way; if it stays so, delete it there",
                    newer=False,
                )
            log.error("%(path)s in %(store)s is damaged: a PUT replaces it", where)
        return found

    def _read_once(self, name: str) -> _Found:
        known = self._known.get(name)
        answer = self._bucket.get_if_changed(FOLDER + name, known.tag if known else None)
        if answer is None:
            self._known.pop(name, None)
            return _Found(Pointer(name))
        body, tag = answer
        if known is not None and tag is known.tag:
            return known
        found = self._parse(name, body, tag)
        if found.damaged is None:
            self._known[name] = found
            self._forget_one()
        return found

    def _forget_one(self) -> None:
        """What was read first, where there are too many: it is sent again the next time."""
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread does the same
            if len(self._known) > KEPT:
                self._known.pop(next(iter(self._known)), None)

    def _parse(self, name: str, body: bytes, tag: Tag) -> _Found:
        try:
            raw = orjson.loads(body)
            writer = str(raw.pop("writer", ""))
            pointer = from_json(name, raw)
        except NewerPointer as newer:
            raise NameUnreadable(
                f"what is stored of {name} {newer}: a newer server has written it, and it is left "
                "as it is",
                newer=True,
            ) from None
        except UNREADABLE:
            return _Found(Pointer(name), tag, damaged=body)
        return _Found(pointer, tag, writer)

    def move(self, seen: Pointer, after: Pointer) -> Pointer:
        """As store.Store.move, told to nobody."""
        name, writer = after.name, secrets.token_hex(8)
        if after.version is None:
            after = replace(deleted(after), folder=after.folder)
        moved = replace(after, revision=seen.revision + 1)
        for _ in range(2):  # the second time by an ETag that was read for it
            current = self._read(name)
            if current.writer == writer:  # an answer got lost, or the write met itself
                return moved
            if current.pointer.revision != seen.revision:
                raise StaleRevision(name)
            if current.damaged is not None:
                self._bucket.overwrite(f"{ASIDE}{name}-{writer}", current.damaged)
            if self._replace(current, _Found(moved, None, writer)):
                return moved
        raise StoreUnavailable(
            f"{self._bucket.url} refuses to replace {FOLDER}{name}: ask for it again"
        )

    def _replace(self, current: _Found, after: _Found) -> bool:
        """Whether it was written. Raises ChangeUnsure where that cannot be told."""
        name, body = after.pointer.name, to_bytes(after.pointer, after.writer)
        try:
            tag = self._bucket.put(FOLDER + name, body, current.tag)
        except (Conflict, StoreUnavailable) as error:
            self._known.pop(name, None)
            current = self._read_again(name)
            if current.writer != after.writer and isinstance(error, StoreUnavailable):
                if current.pointer.revision == after.pointer.revision:  # it is another's
                    raise StaleRevision(name) from None
                raise ChangeUnsure(UNSURE) from None
            return current.writer == after.writer
        self._known[name] = replace(after, tag=tag)
        return True

    def _read_again(self, name: str) -> _Found:
        """After a write that failed; also a refused one may have met itself."""
        try:
            return self._read(name)
        except StoreUnavailable:
            raise ChangeUnsure(UNSURE) from None

    def held_versions(self) -> set[str] | None:
        """All that any name holds; None where a name cannot be read, which may hold any of them.

        Only one thread at a time may ask.
        """
        if next(iter(self._bucket.list(ASIDE)), None) is not None:
            where = {"path": ASIDE, "store": self._bucket.url}
            log.warning("until %(path)s in %(store)s is empty, no version is removed", where)
            return None
        tags = {name_of(one): one.tag for one in self._listed()}  # what is short may be damaged
        self._held = {n: held for n, held in self._held.items() if tags.get(n) == held[0]}
        unread = iter(tags.keys() - self._held.keys())
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(islice(unread, PAGE)):  # all at once would take 2 KB for each
                read = list(pool.map(self._read_for_held, some))
                if None in read:
                    return None
                self._held |= {
                    found.pointer.name: (found.tag, tuple(map(sys.intern, found.pointer.versions)))
                    for found in read
                    if found and found.tag  # else it is gone
                }
        return {version for _, versions in self._held.values() for version in versions}

    def _read_for_held(self, name: str) -> _Found | None:
        """Not kept: there may be 100,000. None for what cannot be read."""
        for _ in range(2):
            with contextlib.suppress(StoreUnavailable):
                answer = self._bucket.get(FOLDER + name)
                found = self._parse(name, *answer) if answer else _Found(Pointer(name))
                if found.damaged is None:
                    return found
        log.warning("the name %(name)s cannot be read: no version is removed", {"name": name})
        return None


def name_of(one: Listed) -> str:
    """Of an object in names/."""
    return one.path.rpartition("/")[2]


def to_bytes(pointer: Pointer, writer: str) -> bytes:
    """A name's object. writer: a nonce of the move."""
    body = json.dumps({"writer": writer, **to_json(pointer)}).encode()
    return body if pointer.version is None else body.ljust(LIVE_BYTES)
