"""Versions on disk: immutable folders by content hash, and small pointers from names to them.

    versions/<sha256>/   the adapter's files as uploaded, options.json, report.json
    names/<name>.json    where the name points: pointer.py
    tmp/                 uploads and removals in progress; emptied at start
    damaged/             versions whose files are no longer what was uploaded
    lock                 held by the server that uses the store

What is committed is fsynced and renamed into place, and what is removed is renamed away first, so a
crash leaves the old state or the new. Knows bytes; knows nothing of tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.adapters.files import ADAPTER_FILES
from app.catalog.disk import READ_ONLY, StoreUnavailable, StoreUnusable, disk_errors, fsync
from app.catalog.pointer import NewerPointer, Pointer, from_json, to_json, valid_name

log = logging.getLogger(__name__)
OPTIONS = "options.json"
REPORT = "report.json"


class StaleRevision(Exception):
    """The name was moved by somebody else in between."""


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
    """The local folder. One process writes it (disk.alone); calls block and belong off the event loop.

    Whatever writes raises StoreFull and StoreUnavailable.
    """

    def __init__(self, root: Path, *, may_write: bool = True) -> None:
        """may_write: whether this process has the store for itself (disk.alone).

        Raises StoreUnusable for a folder that cannot be made or read; read-only is no obstacle.
        """
        self.root = root
        self._may_write = may_write
        self._held: dict[str, set[str]] | None = None  # versions by name, read when first needed
        self._versions, self._names, self._tmp = (root / d for d in ("versions", "names", "tmp"))
        try:
            for folder in (self._versions, self._names, self._tmp):
                folder.mkdir(parents=True, exist_ok=True)
                list(folder.iterdir())
        except OSError as error:
            raise StoreUnusable(
                f"the store {root} cannot be used: {error}; give STORE a folder that this user "
                "can write"
            ) from None
        try:
            for left in self._tmp.iterdir() if may_write else ():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise StoreUnusable(f"the store's {self._tmp} cannot be emptied: {error}") from None
        if not may_write or not os.access(self._versions, os.W_OK):
            log.warning("the store %s is read-only: uploads will be refused", root)

    def _refuse_unlocked(self) -> None:
        if not self._may_write:
            raise StoreUnavailable(
                "the store was read-only when this server started, and may be another one's by now: "
                "start it again to change anything"
            )

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A fresh folder for one upload, gone afterwards whatever happens."""
        self._refuse_unlocked()
        with disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            with disk_errors():
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
        with disk_errors():
            if final.exists():
                if (final / OPTIONS).exists() and content_version(final, options) == version:
                    return
                self.set_aside(version)
            (folder / OPTIONS).write_text(json.dumps(options, sort_keys=True))
            (folder / REPORT).write_text(json.dumps(report))
            for path in folder.rglob("*"):
                fsync(path)
            fsync(folder)
            folder.rename(final)
            fsync(self._versions)

    def read_options(self, version: str) -> dict[str, Any]:
        return dict(json.loads((self.version_folder(version) / OPTIONS).read_text()))

    def read_report(self, version: str) -> dict[str, Any] | None:
        """What was found out about the version when it was stored; None where that is lost."""
        try:
            return dict(json.loads((self.version_folder(version) / REPORT).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def write_report(self, version: str, report: dict[str, Any]) -> None:
        """Replace what is known about the version; lost without harm."""
        with self.receiving() as folder:
            (folder / REPORT).write_text(json.dumps(report))
            (folder / REPORT).rename(self.version_folder(version) / REPORT)

    def set_aside(self, version: str) -> Path | None:
        """Put a damaged version where nothing reads it, for a human to look at; None: it is gone."""
        self._refuse_unlocked()
        folder, aside = self.version_folder(version), self.root / "damaged" / version
        with disk_errors():
            if folder.exists():
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            return aside if aside.exists() else None

    def set_aside_versions(self) -> list[str]:
        """What has been put aside as damaged and not been looked after since."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.root / "damaged").iterdir())
        return []

    def pointers(self) -> Iterator[Pointer]:
        """Every name, deleted ones too."""
        for name in self.names():
            found = self.pointer(name)
            if found is not None:
                yield found

    def names(self) -> list[str]:
        """Every name that has a pointer, deleted and damaged ones too; other files are not ours."""
        return sorted(p.stem for p in self._names.glob("*.json") if valid_name(p.stem))

    def pointer(self, name: str) -> Pointer | None:
        """Where the name points; None: nowhere. A damaged file is set aside, so that a PUT heals it.

        Raises StoreUnavailable, also for what a newer server has written: nobody may write over it.
        """
        path = self._names / f"{name}.json"
        try:
            with disk_errors(), contextlib.suppress(FileNotFoundError):
                if path.is_dir():
                    raise ValueError("it is a folder")
                return from_json(name, json.loads(path.read_bytes()))
        except NewerPointer as newer:
            raise StoreUnavailable(
                f"{path} {newer}: a newer server has written it; it is left as it is"
            ) from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            why = str(error).splitlines()[0]
            log.error("%s is damaged (%s): set aside as %s.damaged", path, why, path.name)
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
        return None

    def move(self, before: Pointer | None, after: Pointer) -> Pointer:
        """Make the name what `after` says, if it still is as `before` saw it (None: not there).

        Versions that no name holds any more are removed. Raises StaleRevision.
        """
        self._refuse_unlocked()
        current = self.pointer(after.name)
        if (current.revision if current else 0) != (before.revision if before else 0):
            raise StaleRevision(after.name)
        after = replace(after, revision=(current.revision if current else 0) + 1)
        path = self._names / f"{after.name}.json"
        held, self._held = self._held, None  # where this fails, only the disk knows how far it came
        if after.version is None and after.folder is None:
            with disk_errors():  # which a full disk takes, too
                path.unlink(missing_ok=True)
                fsync(self._names)
        else:
            self._write(path, after)
        self._held = None if held is None else {**held, after.name: after.versions}
        self.drop_unheld(current.versions - after.versions if current else set())
        return after

    def _write(self, path: Path, pointer: Pointer) -> None:
        with self.receiving() as folder:
            written = folder / "pointer"
            written.write_text(json.dumps(to_json(pointer)))
            fsync(written)
            written.rename(path)
            fsync(self._names)

    def drop_unheld(self, versions: set[str]) -> None:
        """Remove those of `versions` that no name holds. A disk that refuses keeps them until sweep()."""
        if not versions or not self._may_write:
            return
        try:
            if self._held is None:
                self._held = {p.name: p.versions for p in self.pointers()}
        except StoreUnavailable:  # a name that cannot be read may hold any of them
            log.warning("a name cannot be read: no version is removed")
            return
        for version in versions.difference(*self._held.values()):
            with contextlib.suppress(OSError):
                gone = Path(tempfile.mkdtemp(dir=self._tmp))
                self.version_folder(version).rename(gone / version)
                shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a crash left between a commit and its name.

        Not while a name's pointer is damaged, whose versions nobody could tell from those.
        """
        if any(self._names.glob("*.damaged")):
            log.warning("a damaged name lies in %s: no version is removed", self._names)
            return
        self.drop_unheld({path.name for path in self._versions.iterdir()})
