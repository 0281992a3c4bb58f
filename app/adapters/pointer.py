"""Where a name points, where it has pointed, and how it moves: pure values, and their JSON.

Knows no files; store.py keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED = ("base",)

How = Literal["put", "folder", "rollback", "promote", "stage"]


@dataclass(frozen=True)
class Entry:
    """One version that a name has held: since when, through whom (a key's name) and by what.

    how "stage": held beside the current one, without being pointed at.
    """

    version: str
    created: str
    by: str | None = None
    how: How = "put"


@dataclass(frozen=True)
class Trial:
    """Another version of a name that takes part in its traffic until it is promoted or aborted.

    canary: it answers `percent` of the requests, always the same ones where sticky_by names a header
    (or "client"). shadow: it runs `percent` of them as well, and the current version answers.
    """

    mode: Literal["canary", "shadow"]
    version: str
    percent: float
    sticky_by: str | None = None
    since: str = ""
    by: str | None = None


@dataclass(frozen=True)
class Pointer:
    """folder: the last content taken from ADAPTERS_DIR for this name.

    version None: deleted. history: oldest first. merge: whether traffic may merge it, and
    tokens_per_s: what it may be asked for; None: as the server is set.
    """

    name: str
    version: str | None = None
    revision: int = 0
    folder: str | None = None
    history: tuple[Entry, ...] = ()
    merge: Literal["auto", "off"] | None = None
    tokens_per_s: float | None = None
    trial: Trial | None = None

    def created(self, version: str) -> str:
        """Since when the name points at the version."""
        found = (e.created for e in reversed(self.history) if e.version == version)
        return next(found, None) or now()

    @property
    def current(self) -> Entry | None:
        """How the name came to point where it points."""
        index = current_index(self.history, self.version)
        return None if index is None else self.history[index]


def current_index(history: tuple[Entry, ...], version: str | None) -> int | None:
    """Where in the history the version was last pointed at."""
    found = (i for i, e in enumerate(history) if e.version == version and e.how != "stage")
    return max(found, default=None)


def moved(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name points at the entry's version; of its history `keep` stay, and what is in use."""
    trial = before.trial if before.trial and before.trial.version != entry.version else None
    after = replace(before, version=entry.version, trial=trial)
    return replace(after, history=_kept(after, (*before.history, entry), keep))


def staged(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name holds the entry's version too, and points where it pointed."""
    return replace(before, history=_kept(before, (*before.history, entry), keep))


def deleted(before: Pointer) -> Pointer:
    """Nothing of the name is left but which folder content is not to come back by itself."""
    return Pointer(before.name, None, before.revision, before.folder)


def _kept(pointer: Pointer, history: tuple[Entry, ...], keep: int) -> tuple[Entry, ...]:
    recent, older = history[-keep:], history[:-keep]
    used = {pointer.version, pointer.trial.version if pointer.trial else None}
    missing = used - {e.version for e in recent}
    last = {e.version: e for e in older if e.version in missing}
    return (*(e for e in older if last.get(e.version) is e), *recent)


def to_json(pointer: Pointer) -> dict[str, Any]:
    fields = {k: v for k, v in asdict(pointer).items() if k != "name"}
    return {**fields, "deleted": pointer.version is None}


def from_json(name: str, raw: Mapping[str, Any]) -> Pointer:
    """Raises ValueError, TypeError or LookupError for what to_json has not written."""
    return Pointer(
        name,
        raw["version"],
        int(raw["revision"]),
        raw["folder"],
        tuple(Entry(**entry) for entry in raw["history"]),
        raw.get("merge"),
        raw.get("tokens_per_s"),
        Trial(**raw["trial"]) if raw.get("trial") else None,
    )


def valid_name(name: str) -> bool:
    """1 to 63 of a-z 0-9 . _ -, first a letter or digit; "base" is reserved."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
