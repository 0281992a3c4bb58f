"""The contract of a store: immutable versions by content hash, and names that point at them.

Content-addressed versions are committed once; a name moves by compare-and-swap; a deleted name
leaves a tombstone, so that its revision never goes back. tests/catalog/store_contract.py holds
every implementation to these promises. Knows bytes and small JSON; knows no tensors and no HTTP.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.adapters.files import ADAPTER_FILES
from app.catalog.pointer import Pointer

Json = dict[str, Any]  # one small JSON object


class StaleRevision(Exception):
    """The name was moved by somebody else in between."""


class StoreFull(Exception):
    """The store took no more; nothing half-written stays."""


class StoreUnavailable(Exception):
    """The store cannot be changed or read now; what is in memory goes on being served."""


class ChangeUnsure(StoreUnavailable):
    """The store was asked to change something, and has not said whether it did."""


class CacheUnusable(StoreUnavailable):
    """This machine's cache takes nothing, whether the store answers or not."""


class NameUnreadable(StoreUnavailable):
    """Of this one name: what stands there is a newer server's (newer), or damaged."""

    def __init__(self, why: str, *, newer: bool) -> None:
        super().__init__(why)
        self.newer = newer


class StoreUnusable(Exception):
    """The store cannot be opened at all; told at start."""


class VersionDamaged(Exception):
    """The version's files are lost, or are not the ones that were committed."""


@dataclass(frozen=True)
class Moves:
    """What has moved. epoch: as of now; names: those that have moved since, None: any may have."""

    epoch: str
    names: frozenset[str] | None


def content_version(folder: Path, options: Json) -> str:
    """The version's name: sha256 over the adapter's files, by name, and the query's options."""
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


class Store(ABC):
    """Versions and names, shared by all processes that open the same store.

    Every call blocks and belongs off the event loop; every call may come from any thread. Whatever
    writes raises StoreFull and StoreUnavailable; whatever reads raises StoreUnavailable.
    shared: whether other machines' servers may have it open, and move its names, meanwhile.
    """

    shared = False

    @abstractmethod
    def receiving(self) -> AbstractContextManager[Path]:
        """A fresh local folder of this process alone; gone afterwards, whatever happens."""

    @abstractmethod
    def commit(self, folder: Path, version: str, options: Json, report: Json) -> None:
        """Make the files of `folder` the version, all or nothing.

        folder: inside a receiving() one; it may be empty afterwards. What is acknowledged survives
        a crash. A version that is there and whole stays as it is, and is safe from collect() for
        another grace; a damaged one is replaced.
        """

    @abstractmethod
    def folder(self, version: str) -> Path:
        """A local folder to read the version from, verified by its hash. Raises VersionDamaged."""

    @abstractmethod
    def options(self, version: str) -> Json:
        """The query's options that the version was committed with. Raises VersionDamaged."""

    @abstractmethod
    def report(self, version: str) -> Json | None:
        """What was measured of the version when it was loaded; None where that is lost."""

    @abstractmethod
    def write_report(self, version: str, report: Json) -> None:
        """Replace the version's report."""

    @abstractmethod
    def names(self, after: str = "") -> list[str]:
        """A page of the names behind `after`, in order; empty at the end.

        Tombstones are left out.
        """

    def every_name(self) -> Iterator[str]:
        """All pages' names. Those that come or go meanwhile may be among them or not."""
        after = ""
        while page := self.names(after):
            yield from page
            after = page[-1]

    @abstractmethod
    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        """Where the name points; `seen` itself where it has not moved since, which may cost less.

        A tombstone has no version. Revision 0: nothing is stored, or it is damaged and has been set
        aside, so that a move heals the name. Raises NameUnreadable for a pointer that a newer
        server has written.
        """

    @abstractmethod
    def move(self, seen: Pointer, after: Pointer) -> Pointer:
        """Compare-and-swap: make the name what `after` says, if it still is at `seen`'s revision.

        Returns `after` with its revision, one more than `seen`'s. Of several writers who saw the
        same revision exactly one wins; the others get StaleRevision. `after` without a version: a
        tombstone. It holds only versions that `seen` held, or that were committed within the grace.
        """

    @abstractmethod
    def epoch(self) -> str:
        """A change token: differs after any name has moved, and sometimes without.

        Cheap: compared before the pointers are read.
        """

    def moves(self, since: str) -> Moves:
        """What has moved since an epoch, "": since ever. Cheap: asked each second."""
        now = self.epoch()
        return Moves(now, frozenset() if now == since else None)

    @abstractmethod
    def collect(self, older_than_s: float) -> bool:
        """Remove the versions that no name has held for so long: mark, grace, delete.

        A version is marked by one call and deleted by a later one, once the mark is older than
        `older_than_s` and if no commit has taken it away. Returns whether any marks remain. Removes
        nothing while any pointer cannot be read.
        """

    @abstractmethod
    def set_aside(self, version: str) -> str | None:
        """Put a damaged version where nothing reads it; where that is, for a human.

        None: it is gone.
        """

    @abstractmethod
    def set_aside_versions(self) -> list[str]:
        """What has been set aside and not been looked after since."""

    @abstractmethod
    def tombstones(self) -> int:
        """How many deleted names it remembers."""

    @abstractmethod
    def append_audit(self, record: Json) -> None:
        """Keep one more record of who changed what: it survives a crash, and a name's deletion.

        It gets an "id", a text that sorts behind those of the records that were there. The oldest
        records go where there are too many. Small records, and not many at a time: where nothing
        can be appended to, each is an object of its own.
        """

    @abstractmethod
    def read_audit(self, before: str, most: int, wanted: Callable[[Json], bool]) -> list[Json]:
        """The newest `most` records that are wanted, newest first, each with its "id".

        before: those with smaller ids only; "": all.
        """
