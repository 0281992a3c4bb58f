"""Names -> versions, and which of those are merged. A lease is a Python reference.

A request holds the version it resolved until its answer has left, so replacing or deleting a name
never touches a request in flight. Changed on the event loop only, and so without a lock; other
threads read a copy of the names, or ask one dict for one key. Knows no files and no HTTP.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.adapters.report import Report
from app.catalog.nearest import LONGEST, Nearest
from app.catalog.pointer import Entry, OlderThanAsked, Pointer, current_index
from app.catalog.residents import Residents
from app.catalog.stored_version import StoredVersion

OLD_VERSIONS = 16  # resident beside the current ones, for ?adapter=name@version
SHORTEST_VERSION = 12


class UnknownAdapter(Exception):
    """No such name; carries the nearest ones. why: it is there, and cannot be served."""

    def __init__(self, name: str, nearest: list[str], why: str | None = None) -> None:
        meant = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(why or f"no adapter is called {name[:LONGEST]!r}{meant}")
        self.name = name
        self.nearest = nearest
        self.why = why

    def among(self, may_be_told: Callable[[str], bool]) -> UnknownAdapter:
        """The same, with those names only."""
        return UnknownAdapter(self.name, [n for n in self.nearest if may_be_told(n)], self.why)


class UnknownVersion(Exception):
    """The name is there, the version is not one of its own."""


@dataclass(frozen=True)
class Name:
    """A name that is served: where it points, and the report of the version that it points at."""

    pointer: Pointer
    report: Report

    @property
    def name(self) -> str:
        """As clients spell it."""
        return self.pointer.name

    @property
    def digest(self) -> str:
        """The version that it points at."""
        return self.report.version

    @property
    def created(self) -> str:
        """Since when it points there, as ISO 8601 in UTC."""
        return self.pointer.created(self.digest)

    @property
    def created_unix(self) -> int:
        """The same in seconds."""
        return int(datetime.fromisoformat(self.created).timestamp())

    @property
    def versions(self) -> set[str]:
        """Those that its requests run through: its own, and its trial's."""
        trial = self.pointer.trial
        return {self.digest, *([trial.version] if trial else [])}


@dataclass
class Registry:
    """All names. broken, refused: what cannot be served, by name, with the reason.

    broken: stored names; refused: folders of ADAPTERS_DIR, as last seen. merged: by name, the
    version with a merged copy; names of the same bytes are merged each on its own. folder_gone:
    names that are served on although their folder is gone, with the reason. rankers: the names that
    rerank. on_remove: told the name that is served no more.
    """

    residents: Residents
    names: dict[str, Name] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    merged: dict[str, StoredVersion] = field(default_factory=dict)
    folder_gone: dict[str, str] = field(default_factory=dict)
    rankers: set[str] = field(default_factory=set)
    nearest: Nearest = field(default_factory=Nearest)
    on_remove: Callable[[str], None] = lambda _: None
    _pointed: Counter[str] = field(default_factory=Counter)
    _old: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def point(self, name: Name) -> None:
        """Make the name answer with its version from now on."""
        before = self.names.get(name.name)
        self.broken.pop(name.name, None)
        for digest in name.versions:
            self._pointed[digest] += 1
            self._old.pop(digest, None)
        self.names[name.name] = name
        (self.rankers.add if name.report.ranks else self.rankers.discard)(name.name)
        if before is None:
            self.nearest.add(name.name)
        if before is None or before.digest != name.digest:
            self.merged.pop(name.name, None)
        if before is not None:
            self._leave(before)

    def remove(self, name: str) -> None:
        """The name is served no more, whether it was or not."""
        self.broken.pop(name, None)
        self.folder_gone.pop(name, None)
        self.merged.pop(name, None)
        self.rankers.discard(name)
        before = self.names.pop(name, None)
        if before is not None:
            self._leave(before)
            self.nearest.forget(self.names, len(self.names))
            self.on_remove(name)

    def _leave(self, before: Name) -> None:
        for digest in before.versions:
            self._pointed[digest] -= 1
            if not self._pointed[digest]:
                del self._pointed[digest]
                self.keep_old(digest)

    def keep_old(self, digest: str) -> None:
        """A version that no name points at is in memory; of those only the latest few stay."""
        if digest not in self._pointed:
            self._old[digest] = None
            self._old.move_to_end(digest)
            while len(self._old) > OLD_VERSIONS:
                self.residents.drop(self._old.popitem(last=False)[0])

    def get(self, name: str, at_least: int = 0) -> Name:
        """Raises UnknownAdapter; OlderThanAsked below revision `at_least`."""
        served = self.names.get(name)
        if served is None:
            why = self.not_served.get(name)
            nearest = self.nearest.to(name, self.names)
            raise UnknownAdapter(name, nearest, why and f"{name} is there but not served: {why}")
        if served.pointer.revision < at_least:
            raise OlderThanAsked(
                f"{name} is at revision {served.pointer.revision}, and {at_least} is asked for"
            )
        return served

    def holds(self, name: Name, prefix: str | None = None) -> bool:
        """Whether the name's version, or the one that prefix begins, is in memory, merged or not.

        Raises UnknownVersion.
        """
        if prefix is None:
            return name.name in self.merged or name.digest in self.residents
        return find_version(name.name, name.pointer.history, prefix) in self.residents

    def ready(self, name: Name) -> StoredVersion | None:
        """The name's version, merged or not, if it is in memory."""
        return self.merged.get(name.name) or self.residents.use(name.digest)

    @property
    def not_served(self) -> dict[str, str]:
        """Every name that cannot be served, with the reason."""
        return {**self.refused, **self.broken}

    @property
    def merged_bytes(self) -> int:
        """Of all merged copies."""
        return sum(version.merged_bytes for version in tuple(self.merged.values()))


def find_version(name: str, history: Sequence[Entry], prefix: str) -> str:
    """The one version in a name's history that `prefix` begins. Raises UnknownVersion."""
    matches = {e.version for e in history if e.version.startswith(prefix.lower())}
    if len(prefix) < SHORTEST_VERSION or len(matches) != 1:
        raise UnknownVersion(
            f"{name} has no version {prefix[:LONGEST]!r}: give 12 or more hex digits of one of "
            + ", ".join(sorted({e.version[:SHORTEST_VERSION] for e in history}))
        )
    return matches.pop()


def version_before(name: str, history: tuple[Entry, ...], version: str) -> str:
    """The version that the name pointed at before this one. Raises UnknownVersion."""
    now = current_index(history, version) or 0
    earlier = [e.version for e in history[:now] if e.version != version and e.how != "stage"]
    if not earlier:
        raise UnknownVersion(f"{name} has had no other version than this one")
    return earlier[-1]
