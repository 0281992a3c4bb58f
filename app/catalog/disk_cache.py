"""Versions that were brought from a bucket, on this machine's disk, up to so many bytes.

    versions/<sha256>/    a version's files, and what is known of it as JSON beside them

What was used least recently goes first. Nothing in it is believed unread: who asks checks the hash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from app.catalog.disk import FULL as FULL_DISK
from app.catalog.store import CacheUnusable, Json, StoreFull

log = logging.getLogger(__name__)

FULL = "this server's cache (CACHE_DIR) takes no more ({}): make room on its disk"
UNUSABLE = "this server's cache (CACHE_DIR) cannot be used ({})"
IN_USE_S = 60.0  # what was asked for so lately may be being read
SHARE = 10  # a part of the size is cleared at once, and may come before all is looked at again


@contextmanager
def cache_errors() -> Iterator[None]:
    """Raises StoreFull and CacheUnusable in place of OSError."""
    try:
        yield
    except OSError as error:
        log.error("the cache: %(error)s", {"error": str(error)})
        if error.errno in FULL_DISK:
            raise StoreFull(FULL.format(error.strerror)) from None
        raise CacheUnusable(UNUSABLE.format(error.strerror)) from None


class DiskCache:
    """Several threads may use it, and several processes the same folder."""

    def __init__(self, root: Path, most_bytes: int) -> None:
        """Raises OSError."""
        self._folder = root / "versions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._most_bytes = most_bytes
        self._making_room = threading.Lock()
        self._shrunk_at = -math.inf  # behind the lock
        self._room = 0  # bytes that may come before the folder is looked at: behind the lock

    def get(self, version: str) -> Path | None:
        """The version's folder, used now; None where it is not there."""
        folder = self._folder / version
        with contextlib.suppress(OSError):  # it may be read-only
            os.utime(folder)
        return folder if folder.is_dir() else None

    def put(self, version: str, folder: Path) -> Path:
        """The folder moves in, unless another was quicker. Raises OSError."""
        place, size = self._folder / version, _size(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():
                self.drop(version)  # something else is there
                folder.rename(place)
        with self._making_room:
            self._room -= size
            if self._room < 0:  # there may be thousands to be looked at
                self._make_room()
        return place

    def read(self, version: str, name: str) -> Json | None:
        """Of an object beside the version's files; None: there is none. This is no use of it."""
        with contextlib.suppress(OSError, ValueError):
            told = orjson.loads((self._folder / version / name).read_bytes())
            return told if isinstance(told, dict) else None
        return None

    def write(self, version: str, name: str, told: Json) -> None:
        """Where the version is there; that it cannot be kept is no error."""
        with contextlib.suppress(OSError):
            write_json(self._folder / version / name, told)

    def drop(self, version: str) -> None:
        """Its files are not what they should be."""
        shutil.rmtree(self._folder / version, ignore_errors=True)
        with contextlib.suppress(OSError):  # where a folder should be, something else
            (self._folder / version).unlink()

    def shrink(self) -> None:
        """To half of what is there: the disk is full before the cache has all that it may take.

        Once in a while: what does not fit in half of it need not take all.
        """
        with self._making_room, contextlib.suppress(OSError):
            if time.monotonic() - self._shrunk_at < IN_USE_S:
                return
            self._shrunk_at = time.monotonic()
            total = sum(size for _, _, size in self._all())
            log.warning("the cache's disk is full: %(bytes)d bytes become half", {"bytes": total})
            self._make_room(total // 2)

    def _make_room(self, most_bytes: int | None = None) -> None:
        sizes = {path: (used, size) for path, used, size in self._all()}
        total, share = sum(size for _, size in sizes.values()), self._most_bytes // SHARE
        least = self._most_bytes - share if total > self._most_bytes else total
        least = least if most_bytes is None else most_bytes
        for path, (used, size) in sorted(sizes.items(), key=lambda one: one[1][0]):
            if total <= least or time.time() - used < IN_USE_S:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= size
        self._room = max(0, min(self._most_bytes - total, share))

    def _all(self) -> list[tuple[Path, float, int]]:
        """Each version's folder, when it was last used, and its bytes."""
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat().st_mtime, _size(path)))
        return found


def write_json(path: Path, told: Json) -> None:
    """Whole or not at all. Raises OSError."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    part.write_text(json.dumps(told, sort_keys=True))
    part.replace(path)


def _size(folder: Path) -> int:
    """Of its files, in bytes. Raises FileNotFoundError."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
