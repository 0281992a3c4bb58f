"""Marks of versions that no name holds: empty files whose time says since when.

Knows files; knows no names. Whoever removes a mark or believes one has the store's lock.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


class Marks:
    """One file a version in `folder`, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def remove(self, version: str) -> None:
        """Raises OSError."""
        (self._folder / version).unlink(missing_ok=True)

    def time_ns(self, version: str) -> int | None:
        """When the version was marked; None: it is not."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / version).stat().st_mtime_ns
        return None

    def older_than(self, seconds: float) -> dict[str, int]:
        """The marked versions, with the time of their marks."""
        latest = time.time_ns() - int(seconds * 1e9)
        times = {version: self.time_ns(version) for version in self._versions()}
        return {v: t for v, t in times.items() if t is not None and t <= latest}

    def keep(self, versions: set[str]) -> bool:
        """Mark these where they are not marked, and no others. Returns whether there are any."""
        before = self._versions()
        for version in before - versions:
            self.remove(version)
        for version in versions - before:
            self._folder.mkdir(exist_ok=True)
            (self._folder / version).touch(exist_ok=True)
        return bool(versions)

    def _versions(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in self._folder.iterdir()}
        return set()
