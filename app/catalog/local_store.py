"""The store on a local disk, for one machine's processes.

    versions/<sha256>/   the adapter's files as uploaded, options.json, report.json
    names/               where each name points: local_names.py
    audit/               who changed what: local_audit.py
    marks/<sha256>       no name holds the version, since the mark's time
    tmp/                 uploads and removals in progress, each folder locked by who works in it
    damaged/             versions whose files are no longer what was uploaded
    moving               locked while a name moves
    lock                 held by the server that uses the store: disk.py

What is committed is fsynced and renamed into place, and what is removed is renamed away first, so a
crash leaves the old state or the new. Knows bytes; knows nothing of tensors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import orjson

from app.catalog.disk import disk_errors, fsync
from app.catalog.local_audit import LocalAudit
from app.catalog.local_names import UNREADABLE, LocalNames
from app.catalog.marks import Marks
from app.catalog.pointer import Pointer
from app.catalog.store import (
    Json,
    Store,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
    VersionDamaged,
    content_version,
)
from app.catalog.workspace import Workspace

log = logging.getLogger(__name__)
OPTIONS = "options.json"
REPORT = "report.json"


class LocalStore(Store):
    """The contract's promises by fsync and rename, and by flock where two may write.

    What threads share is on the disk, behind the same flock. Only collect() keeps something between
    calls, behind a lock of its own.
    """

    def __init__(self, root: Path, *, may_write: bool = True) -> None:
        """may_write: whether this server has the store for itself (disk.alone).

        Raises StoreUnusable for a folder that cannot be made or read; read-only is no obstacle.
        """
        self.root = root
        self._versions, names = root / "versions", root / "names"
        try:
            for folder in (self._versions, names):
                folder.mkdir(parents=True, exist_ok=True)
                list(folder.iterdir())
        except OSError as error:
            raise StoreUnusable(
                f"the store {root} cannot be used: {error}; give STORE a folder that this user "
                "can write"
            ) from None
        self._workspace = Workspace(root, may_write=may_write)
        self._names = LocalNames(names, self._workspace)
        self._audit = LocalAudit(root / "audit", self._workspace)
        self._marks = Marks(root / "marks")
        self._collecting = threading.Lock()
        if not may_write or not os.access(self._versions, os.W_OK):
            where = {"store": str(root)}
            log.warning("the store %(store)s is read-only: uploads will be refused", where)

    def receiving(self) -> AbstractContextManager[Path]:
        """As Store.receiving."""
        return self._workspace.receiving()

    def commit(self, folder: Path, version: str, options: Json, report: Json) -> None:
        """As Store.commit."""
        with disk_errors():
            with self._workspace.locked():
                self._marks.remove(version)
            if self._is_whole(version):
                return
            (folder / OPTIONS).write_text(json.dumps(options, sort_keys=True))
            (folder / REPORT).write_text(json.dumps(report))
            for path in folder.rglob("*"):
                fsync(path)
            fsync(folder)
            with self._workspace.locked():
                self._rename_into_place(folder, version)

    def _rename_into_place(self, folder: Path, version: str) -> None:
        """Not where another has committed it meanwhile."""
        if self._is_whole(version):
            return
        self._move_aside(version)
        folder.rename(self._versions / version)
        fsync(self._versions)

    def folder(self, version: str) -> Path:
        """As Store.folder."""
        with disk_errors():
            if self._is_whole(version):
                return self._versions / version
        raise VersionDamaged(version)

    def _is_whole(self, version: str) -> bool:
        """Raises OSError."""
        folder = self._versions / version
        try:
            return content_version(folder, _read_json(folder / OPTIONS)) == version
        except (FileNotFoundError, NotADirectoryError, *UNREADABLE):
            return False

    def options(self, version: str) -> Json:
        """As Store.options."""
        try:
            with disk_errors(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return _read_json(self._versions / version / OPTIONS)
        except UNREADABLE:
            pass
        raise VersionDamaged(version)

    def report(self, version: str) -> Json | None:
        """As Store.report."""
        try:
            return _read_json(self._versions / version / REPORT)
        except (OSError, *UNREADABLE):
            return None

    def write_report(self, version: str, report: Json) -> None:
        """As Store.write_report."""
        with self.receiving() as folder:
            (folder / REPORT).write_text(json.dumps(report))
            (folder / REPORT).rename(self._versions / version / REPORT)

    def set_aside(self, version: str) -> str | None:
        """As Store.set_aside."""
        self._workspace.refuse_read_only()
        with disk_errors(), self._workspace.locked():
            # Another may have committed it again since it was read.
            return None if self._is_whole(version) else self._move_aside(version)

    def _move_aside(self, version: str) -> str | None:
        folder, aside = self._versions / version, self.root / "damaged" / version
        if folder.exists():
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            place = {"version": version, "place": str(aside)}
            log.error("version %(version)s is damaged: set aside in %(place)s", place)
        return str(aside) if aside.exists() else None

    def set_aside_versions(self) -> list[str]:
        """As Store.set_aside_versions."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.root / "damaged").iterdir())
        return []

    def names(self, after: str = "") -> list[str]:
        """As Store.names."""
        return self._names.page(after)

    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        """As Store.look."""
        return self._names.look(name, seen)

    def move(self, seen: Pointer, after: Pointer) -> Pointer:
        """As Store.move."""
        return self._names.move(seen, after)

    def epoch(self) -> str:
        """As Store.epoch."""
        return self._names.epoch()

    def tombstones(self) -> int:
        """As Store.tombstones."""
        return self._names.tombstones()

    def collect(self, older_than_s: float) -> bool:
        """As Store.collect."""
        if not self._workspace.may_write:
            return False
        with self._collecting, disk_errors():
            due = self._marks.older_than(older_than_s)  # before the names are read
            held = self._names.held_versions()
            if held is None:
                return False
            for version in due.keys() - held:
                self._drop(version, due[version])
            return self._marks.keep({path.name for path in self._versions.iterdir()} - held)

    def append_audit(self, record: Json) -> None:
        """As Store.append_audit."""
        self._audit.append(record)

    def read_audit(self, before: str, most: int, wanted: Callable[[Json], bool]) -> list[Json]:
        """As Store.read_audit."""
        return self._audit.read(before, most, wanted)

    def _drop(self, version: str, marked_ns: int) -> None:
        """Where the disk refuses, the version stays until the next collect()."""
        refused = contextlib.suppress(OSError, StoreFull, StoreUnavailable)
        with refused, self.receiving() as tmp, self._workspace.locked():
            if self._marks.time_ns(version) == marked_ns:  # no commit has taken it away
                (self._versions / version).rename(tmp / version)
                self._marks.remove(version)


def _read_json(path: Path) -> Json:
    return dict(orjson.loads(path.read_bytes()))
