"""Versions that were brought from a bucket, on this machine's disk, up to so many bytes.

    versions/<sha256>/    a version's files and options.json, as a local store has them

What was used least recently goes first. Nothing in it is believed unread: who asks checks the hash.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

IN_USE_S = 60.0  # what was asked for so lately may be being read


class DiskCache:
    """Several threads may use it, and several processes the same folder."""

    def __init__(self, root: Path, most_bytes: int) -> None:
        """Raises OSError."""
        self._folder = root / "versions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._most_bytes = most_bytes
        self._making_room = threading.Lock()

    def get(self, version: str) -> Path | None:
        """The version's folder, used now; None where it is not there."""
        folder = self._folder / version
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder)
            return folder
        return None

    def put(self, version: str, folder: Path) -> Path:
        """The folder moves in, unless another was quicker. Raises OSError."""
        place = self._folder / version
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        self._make_room()
        return place

    def drop(self, version: str) -> None:
        """Its files are not what they should be."""
        shutil.rmtree(self._folder / version, ignore_errors=True)

    def _make_room(self) -> None:
        with self._making_room:
            sizes = {path: (used, size) for path, used, size in self._all()}
            total = sum(size for _, size in sizes.values())
            for path, (used, size) in sorted(sizes.items(), key=lambda one: one[1][0]):
                if total <= self._most_bytes or time.time() - used < IN_USE_S:
                    return
                shutil.rmtree(path, ignore_errors=True)
                total -= size

    def _all(self) -> list[tuple[Path, float, int]]:
        """Each version's folder, when it was last used, and its bytes."""
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                files = [file for file in path.rglob("*") if file.is_file()]
                size = sum(file.stat().st_size for file in files)
                found.append((path, path.stat().st_mtime, size))
        return found
