"""A local store's names: one small file each, moved by compare-and-swap under the workspace's lock.

    <name>.json          where the name points: pointer.py
    <name>.gone          a tombstone: the last pointer of a deleted name
    <name>.json.damaged  no pointer that any server has written

Knows no versions but by their hashes.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import orjson

from app.catalog.disk import disk_errors, fsync
from app.catalog.pointer import NewerPointer, Pointer, deleted, from_json, to_json, valid_name
from app.catalog.store import NameUnreadable, StaleRevision, StoreUnavailable
from app.catalog.workspace import Workspace

log = logging.getLogger(__name__)
LIVE, GONE = ".json", ".gone"
PAGE = 10_000  # names; each page lists the folder once
SETTLED_NS = 100_000_000  # a folder's time advances with the kernel's clock, by up to 10 ms at once
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


Stamp = tuple[int, int]  # of a file: its inode, its time in ns


class PointerDamaged(Exception):
    """The file is no pointer that any server has written: its path, and why."""


class LocalNames:
    """What threads share is on the disk; only one at a time may ask for held_versions()."""

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self._folder = folder
        self._workspace = workspace
        self._held: dict[str, tuple[Stamp | None, set[str]]] = {}  # each name's versions

    def page(self, after: str = "") -> list[str]:
        """As store.Store.names; damaged ones too. Files that are no name's are not ours."""
        with disk_errors(), os.scandir(self._folder) as entries:
            stems = (e.name.removesuffix(LIVE) for e in entries if e.name.endswith(LIVE))
            return heapq.nsmallest(PAGE, (s for s in stems if s > after and valid_name(s)))

    def tombstones(self) -> int:
        """As store.Store.tombstones."""
        with disk_errors(), os.scandir(self._folder) as entries:
            return sum(entry.name.endswith(GONE) for entry in entries)

    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        """As store.Store.look."""
        try:
            pointer = self._read(name)
        except PointerDamaged:
            if not self._workspace.may_write:
                return Pointer(name)
            with self._workspace.locked():
                pointer = self._read_or_set_aside(name)
        return seen if seen == pointer else pointer

    def _read(self, name: str) -> Pointer:
        """Raises PointerDamaged, StoreUnavailable."""
        for suffix in (LIVE, GONE, LIVE):  # a tombstone goes after its name's next pointer is there
            pointer = self._read_file(name, self._folder / (name + suffix))
            if pointer is not None and suffix == GONE:
                return replace(deleted(pointer), revision=pointer.revision + 1)
            if pointer is not None:
                return pointer
        return Pointer(name)

    def _read_file(self, name: str, path: Path) -> Pointer | None:
        try:
            with disk_errors(), contextlib.suppress(FileNotFoundError):
                return from_json(name, orjson.loads(_content(path)))
        except NewerPointer as newer:
            raise NameUnreadable(
                f"{path} {newer}: a newer server has written it, and it is left as it is",
                newer=True,
            ) from None
        except UNREADABLE as error:
            raise PointerDamaged(path, str(error).splitlines()[0]) from None
        return None

    def _read_or_set_aside(self, name: str) -> Pointer:
        """For who has the lock, or a healed pointer might be set aside."""
        try:
            return self._read(name)
        except PointerDamaged as damaged:
            path, why = damaged.args
            where = {"path": str(path), "reason": why}
            log.error("%(path)s is damaged (%(reason)s): set aside as %(path)s.damaged", where)
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
            return Pointer(name)

    def move(self, seen: Pointer, after: Pointer) -> Pointer:
        """As store.Store.move."""
        self._workspace.refuse_read_only()
        with self._workspace.locked():
            current = self._read_or_set_aside(after.name)
            if current.revision != seen.revision:
                raise StaleRevision(after.name)
            with disk_errors():
                self._replace(current, after)
        return replace(after, revision=current.revision + 1)

    def _replace(self, current: Pointer, after: Pointer) -> None:
        live, gone = (self._folder / (after.name + suffix) for suffix in (LIVE, GONE))
        if after.version is not None:
            self._write(live, replace(after, revision=current.revision + 1))
            gone.unlink(missing_ok=True)
        elif live.exists() and after.folder == current.folder:
            live.rename(gone)  # which a full disk takes, too
        else:
            self._write(gone, replace(after, revision=current.revision))
            live.unlink(missing_ok=True)
        fsync(self._folder)

    def _write(self, path: Path, pointer: Pointer) -> None:
        with self._workspace.receiving() as folder:
            written = folder / "pointer"
            written.write_text(json.dumps(to_json(pointer)))
            fsync(written)
            written.rename(path)
            fsync(self._folder)

    def epoch(self) -> str:
        """As store.Store.epoch: the time of the names' folder, which every rename sets.

        Two renames may set the same time: until it settles, each value is unlike any other.
        """
        with disk_errors():
            changed = self._folder.stat().st_mtime_ns
        now = time.time_ns()
        return str(changed) if now - changed > SETTLED_NS else f"{changed}+{now}"

    def held_versions(self) -> set[str] | None:
        """All that any name holds; None where a name cannot be read, which may hold any of them."""
        before, self._held = self._held, {}
        files = self._files()
        if files is None:
            return None
        for name, stamp in files.items():
            try:
                same = stamp is not None and name in before and before[name][0] == stamp
                self._held[name] = before[name] if same else (stamp, self._read(name).versions)
            except (PointerDamaged, StoreUnavailable):
                unread = {"name": name}
                log.warning("the name %(name)s cannot be read: no version is removed", unread)
                return None
        return set().union(*(versions for _, versions in self._held.values()))

    def _files(self) -> dict[str, Stamp | None] | None:
        """By name; None where one was set aside. No stamp: too new, it may change unseen."""
        files: dict[str, Stamp | None] = {}
        latest = time.time_ns() - SETTLED_NS
        for path in self._folder.iterdir():
            if path.suffix == ".damaged":
                where = {"path": str(path)}
                log.warning("until somebody takes %(path)s away, no version is removed", where)
                return None
            if path.suffix == LIVE and valid_name(path.stem):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    settled = stat.st_mtime_ns < latest
                    files[path.stem] = (stat.st_ino, stat.st_mtime_ns) if settled else None
        return files


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise ValueError("it is a folder") from None
