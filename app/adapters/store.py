"""Versions on disk: immutable folders by content hash, and small pointers from names to them.

    versions/<sha256>/   the adapter's files as uploaded, options.json, report.json
    names/<name>.json    {"version", "revision", "deleted", "folder", "history"}
    tmp/                 uploads in progress; emptied at start

What is committed is fsynced and renamed into place, so a crash leaves the old state or the new.
Knows bytes; knows nothing of tensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from app.adapters.files import ADAPTER_FILES

log = logging.getLogger(__name__)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED = ("base",)
KEPT_VERSIONS = (
    64  # of a name, for rollback; an adapter that is put ten times a second fills no disk
)
OPTIONS = "options.json"
REPORT = "report.json"


class StoreFull(Exception):
    """The disk took no more; nothing half-written stays."""


class StoreUnusable(Exception):
    """The store's folder cannot be made or written; found at start."""


class StaleRevision(Exception):
    """The name was moved by somebody else in between."""


@dataclass(frozen=True)
class Entry:
    """One version that a name has pointed at."""

    version: str
    created: str


@dataclass(frozen=True)
class Pointer:
    """Where a name points. folder: the last content taken from ADAPTERS_DIR for this name.

    merge: whether traffic may merge it; None: as the server is set.
    """

    name: str
    version: str | None
    revision: int
    folder: str | None
    history: tuple[Entry, ...]
    merge: Literal["auto", "off"] | None = None

    def created(self, version: str) -> str:
        """Since when the name points at the version."""
        found = (e.created for e in reversed(self.history) if e.version == version)
        return next(found, None) or now()


def valid_name(name: str) -> bool:
    """1 to 63 of a-z 0-9 . _ -, first a letter or digit; "base" is reserved."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def content_version(folder: Path, options: dict[str, Any]) -> str:
    """sha256 over the adapter's files, by name, and what the query said about them."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        path = folder / name
        if path.exists():
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{name} {inner}\n".encode())
    if options:
        digest.update(json.dumps(options, sort_keys=True).encode())
    return digest.hexdigest()


class Store:
    """The local folder. One process writes it; calls block and belong off the event loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[str, set[str]] | None = None  # versions by name, read when first needed
        self._versions, self._names, self._tmp = (root / d for d in ("versions", "names", "tmp"))
        try:
            for folder in (self._versions, self._names, self._tmp):
                folder.mkdir(parents=True, exist_ok=True)
            for left in self._tmp.iterdir():
                shutil.rmtree(left)
        except OSError as error:
            raise StoreUnusable(f"the store {root} cannot be written: {error}") from None

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A fresh folder for one upload, gone afterwards whatever happens.

        Raises StoreFull for a full disk.
        """
        with _full_disk_named():
            folder = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            with _full_disk_named():
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def version_folder(self, version: str) -> Path:
        return self._versions / version

    def commit(
        self, folder: Path, version: str, options: dict[str, Any], report: dict[str, Any]
    ) -> None:
        """Make `folder` the version's; one that is there already and whole stays as it is."""
        final = self.version_folder(version)
        with _full_disk_named():
            if final.exists():
                if (final / OPTIONS).exists() and content_version(final, options) == version:
                    return
                shutil.rmtree(final)
            (folder / OPTIONS).write_text(json.dumps(options, sort_keys=True))
            (folder / REPORT).write_text(json.dumps(report))
            for path in folder.rglob("*"):
                _fsync(path)
            _fsync(folder)
            folder.rename(final)
            _fsync(self._versions)

    def read_options(self, version: str) -> dict[str, Any]:
        return dict(json.loads((self.version_folder(version) / OPTIONS).read_text()))

    def read_report(self, version: str) -> dict[str, Any] | None:
        """What was found out about the version when it was stored; None where that is lost."""
        try:
            return dict(json.loads((self.version_folder(version) / REPORT).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_report(self, version: str, report: dict[str, Any]) -> None:
        """Replace what is known about the version; lost without harm."""
        with self.receiving() as folder:
            (folder / REPORT).write_text(json.dumps(report))
            (folder / REPORT).rename(self.version_folder(version) / REPORT)

    def pointers(self) -> Iterator[Pointer]:
        """Every name, deleted ones too."""
        for name in self.names():
            found = self.pointer(name)
            if found is not None:
                yield found

    def names(self) -> list[str]:
        """Every name that has a pointer, deleted and damaged ones too."""
        return sorted(path.stem for path in self._names.glob("*.json"))

    def pointer(self, name: str) -> Pointer | None:
        """Where the name points; None: nowhere. A damaged file is set aside, so that a PUT heals it."""
        path = self._names / f"{name}.json"
        try:
            raw = json.loads(path.read_bytes())
            history = tuple(Entry(**entry) for entry in raw["history"])
            return Pointer(
                name,
                raw["version"],
                int(raw["revision"]),
                raw["folder"],
                history,
                raw.get("merge"),
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError) as error:
            log.error("%s is damaged (%s): set aside as %s.damaged", path, error, path.name)
            path.rename(path.with_name(f"{path.name}.damaged"))
            return None

    def point(
        self,
        name: str,
        version: str | None,
        expected: Pointer | None,
        folder: str | None = None,
        merge: Literal["auto", "off"] | None = None,
    ) -> Pointer:
        """Move a name to a version (None: deleted), if it is still where `expected` saw it.

        Of its history the last KEPT_VERSIONS stay, none of a deleted name's; versions that no name
        holds any more are removed. merge None: as before. Raises StaleRevision, StoreFull.
        """
        current = self.pointer(name)
        if (current.revision if current else 0) != (expected.revision if expected else 0):
            raise StaleRevision(name)
        entries = current.history if current else ()
        if version is None:
            entries = ()
        elif current is None or current.version != version:
            entries = (*entries, Entry(version, now()))[-KEPT_VERSIONS:]
        pointer = Pointer(
            name,
            version,
            (current.revision if current else 0) + 1,
            folder or (current.folder if current else None),
            entries,
            (merge or (current.merge if current else None)) if version else None,
        )
        self._write(pointer)
        self._hold(name, entries)
        left = {e.version for e in current.history} if current else set()
        self.drop_unheld(left - {e.version for e in entries})
        return pointer

    def _write(self, pointer: Pointer) -> None:
        fields = {k: v for k, v in asdict(pointer).items() if k != "name"}
        fields["deleted"] = pointer.version is None
        with _full_disk_named(), self.receiving() as folder:
            path = folder / "pointer"
            path.write_text(json.dumps(fields))
            _fsync(path)
            path.rename(self._names / f"{pointer.name}.json")
            _fsync(self._names)

    def _hold(self, name: str, entries: tuple[Entry, ...]) -> None:
        if self._held is not None:
            self._held[name] = {e.version for e in entries}

    def drop_unheld(self, versions: set[str]) -> None:
        """Remove those of `versions` that no name has pointed at."""
        if not versions:
            return
        if self._held is None:
            self._held = {p.name: {e.version for e in p.history} for p in self.pointers()}
        for version in versions.difference(*self._held.values()):
            shutil.rmtree(self.version_folder(version), ignore_errors=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_named() -> Iterator[None]:

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise StoreFull(f"the store takes no more: {error.strerror}") from None
        raise
