"""Names -> resident versions. Memory is a cache of the store; a lease is a Python reference.

A request holds the Version it resolved until its answer has left, so replacing or deleting a name
never touches a request in flight. Touched from the event loop only; knows no files and no HTTP.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from app.adapters.adapter import Adapter
from app.adapters.store import Entry

KEPT_OLD_VERSIONS = 16  # resident beside the current ones, for ?adapter=name@version
SHORTEST_VERSION = 12


class UnknownAdapter(Exception):
    """No such name; carries the nearest ones."""

    def __init__(self, name: str, nearest: list[str], why: str | None = None) -> None:
        meant = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(why or f"no adapter is called {name!r}{meant}")
        self.nearest = nearest


class UnknownVersion(Exception):
    """The name is there, the version is not one of its own."""


@dataclass(eq=False)
class Version:
    """One immutable adapter, ready to run. report: what the adapter routes answer about it.

    unmerged: its layers as they were loaded; layers: those that it runs with, which a merge swaps
    for merged ones. Both are model/delta.py's Layers, and opaque here.
    """

    digest: str
    adapter: Adapter
    report: Mapping[str, Any]
    unmerged: Any
    layers: Any
    merged_bytes: int = 0

    @property
    def merged(self) -> bool:
        return self.merged_bytes > 0

    def unmerge(self) -> None:
        """Drop the merged copy. A batch that is running keeps the layers it started with."""
        self.layers = self.unmerged
        self.merged_bytes = 0


@dataclass(frozen=True)
class Name:
    """What a name points at now, what it pointed at before, and since when."""

    name: str
    version: Version
    created: str
    history: tuple[Entry, ...]

    @property
    def created_unix(self) -> int:
        return int(datetime.fromisoformat(self.created).timestamp())


@dataclass
class Registry:
    """All that is resident. broken, refused: what cannot be served, by name, with the reason.

    broken: stored names; refused: folders of ADAPTERS_DIR, as last seen. fallen_back: names that are
    served by an earlier version, because their own no longer gives its certificate's answers.
    """

    names: dict[str, Name] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    fallen_back: dict[str, str] = field(default_factory=dict)
    _old: OrderedDict[str, Version] = field(default_factory=OrderedDict)

    def point(self, name: str, version: Version, created: str, history: tuple[Entry, ...]) -> None:
        """Make `name` answer with `version` from now on.

        Names that point at the same bytes share the tensors, but each is merged on its own.
        """
        before = self.names.get(name)
        if before is not None and before.version.digest == version.digest:
            version = before.version
        elif any(n.version is version for n in self.names.values()):
            version = replace(version, layers=version.unmerged, merged_bytes=0)
        self.broken.pop(name, None)
        self.fallen_back.pop(name, None)
        self._old.pop(version.digest, None)
        self.names[name] = Name(name, version, created, history)
        if before is not None and before.version.digest != version.digest:
            self.keep(before.version)

    def remove(self, name: str) -> None:
        self.broken.pop(name, None)
        self.fallen_back.pop(name, None)
        self.names.pop(name, None)

    def get(self, name: str) -> Name:
        """Raises UnknownAdapter."""
        found = self.names.get(name)
        if found is None:
            why = self.not_served.get(name)
            nearest = difflib.get_close_matches(name, self.names, n=3)
            raise UnknownAdapter(name, nearest, why and f"{name} is there but not served: {why}")
        return found

    @property
    def not_served(self) -> dict[str, str]:
        """Every name that cannot be served, with the reason."""
        return {**self.refused, **self.broken}

    def resident(self, digest: str) -> Version | None:
        """The version if it is in memory."""
        current = next((n.version for n in self.names.values() if n.version.digest == digest), None)
        if current is None and digest in self._old:
            self._old.move_to_end(digest)
            return self._old[digest]
        return current

    def keep(self, version: Version) -> None:
        """Hold a version that its name left; the least recently used falls out.

        Its merged copy is dropped.
        """
        version.unmerge()
        self._old[version.digest] = version
        while len(self._old) > KEPT_OLD_VERSIONS:
            self._old.popitem(last=False)

    @property
    def merged_bytes(self) -> int:
        """Of all merged copies; a version that no name points at has none."""
        return sum(found.version.merged_bytes for found in self.names.values())


def find_version(name: str, history: Sequence[Entry], prefix: str) -> str:
    """The one version in a name's history that `prefix` begins. Raises UnknownVersion."""
    matches = {e.version for e in history if e.version.startswith(prefix.lower())}
    if len(prefix) < SHORTEST_VERSION or len(matches) != 1:
        raise UnknownVersion(
            f"{name} has no version {prefix!r}: give 12 or more hex digits of one of "
            + ", ".join(sorted({e.version[:SHORTEST_VERSION] for e in history}))
        )
    return matches.pop()


def version_before(name: str, history: Sequence[Entry]) -> str:
    """The version that the name pointed at before its last one. Raises UnknownVersion."""
    earlier = [e.version for e in history if e.version != history[-1].version]
    if not earlier:
        raise UnknownVersion(f"{name} has had no other version than this one")
    return earlier[-1]
