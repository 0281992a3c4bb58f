"""Where a name points, where it has pointed, and how it moves: pure values, and their JSON.

Knows no files; store.py keeps them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED = ("base",)
ENTRIES_PER_VERSION = 4  # of a history, on average: whoever goes to and fro fills no disk

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

    version None: deleted. history: oldest first. tokens_per_s: what it may be asked for; None: any.
    """

    name: str
    version: str | None = None
    revision: int = 0
    folder: str | None = None
    history: tuple[Entry, ...] = ()
    tokens_per_s: float | None = None
    trial: Trial | None = None

    def created(self, version: str) -> str:
        """Since when the name points at the version."""
        found = (e.created for e in reversed(self.history) if e.version == version)
        return next(found, None) or now()

    @property
    def versions(self) -> set[str]:
        """All that the name holds."""
        used = {self.version, self.trial.version if self.trial else None} - {None}
        return {e.version for e in self.history} | {version for version in used if version}

    @property
    def from_folder(self) -> bool:
        """Whether what it holds came from a folder last, and not from a client."""
        return came_from_folder(self.history)


def holds_of_clients(pointer: Pointer) -> bool:
    """Whether a client has put anything by this name: versions, a trial, a quota."""
    said = (pointer.trial, pointer.tokens_per_s)
    put = any(entry.how in ("put", "stage", "promote") for entry in pointer.history)
    return put or any(value is not None for value in said)


def current_index(history: tuple[Entry, ...], version: str | None) -> int | None:
    """Where in the history the version was last pointed at."""
    found = (i for i, e in enumerate(history) if e.version == version and e.how != "stage")
    return max(found, default=None)


def came_from_folder(history: tuple[Entry, ...]) -> bool:
    """Going back to an earlier version does not make the name anybody else's."""
    brought = [e.how for e in history if e.how in ("put", "folder", "promote")]
    return brought[-1:] == ["folder"]


def moved(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name points at the entry's version; `keep` of its versions stay, and those in use."""
    trial = before.trial if before.trial and before.trial.version != entry.version else None
    after = replace(before, version=entry.version, trial=trial)
    return replace(after, history=_kept(after, (*before.history, entry), keep))


def staged(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name holds the entry's version too, and points where it pointed."""
    if entry.version in {e.version for e in before.history}:
        return before
    return replace(before, history=_kept(before, (*before.history, entry), keep))


def deleted(before: Pointer) -> Pointer:
    """Nothing of the name is left but which folder content is not to come back by itself."""
    return Pointer(before.name, None, before.revision, before.folder)


def _kept(pointer: Pointer, history: tuple[Entry, ...], keep: int) -> tuple[Entry, ...]:
    """The entries of the last versions and of those in use, and not too many of them."""
    latest = list(dict.fromkeys(e.version for e in reversed(history)))
    trial = [pointer.trial.version] if pointer.trial else []
    versions = {*latest[:keep], pointer.version, *trial}
    kept = [e for e in history if e.version in versions]
    last = {e.version: i for i, e in enumerate(kept)}
    pointed = {e.version: i for i, e in enumerate(kept) if e.how != "stage"}
    needed = {*last.values(), *pointed.values()}
    old = len(kept) - ENTRIES_PER_VERSION * keep
    return tuple(e for i, e in enumerate(kept) if i >= old or i in needed)


def to_json(pointer: Pointer) -> dict[str, Any]:
    """With a digest of it all, so that a flipped bit is not believed."""
    fields = {k: v for k, v in asdict(pointer).items() if k != "name"}
    fields["deleted"] = pointer.version is None
    return {**fields, "sha256": digest_of(fields)}


def from_json(name: str, raw: Mapping[str, Any]) -> Pointer:
    """Raises ValueError, TypeError or AttributeError for what to_json has not written."""
    fields = {k: v for k, v in raw.items() if k != "sha256"}
    if "sha256" in raw and raw["sha256"] != digest_of(fields):
        raise ValueError("it is not what was written")
    if missing := {"version", "revision", "folder", "history"} - fields.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return _POINTER.validate_python({**fields, "name": name})


_POINTER = TypeAdapter(Pointer)


def digest_of(fields: Mapping[str, Any]) -> str:
    """sha256 of what JSON keeps of it."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def valid_name(name: str) -> bool:
    """1 to 63 of a-z 0-9 . _ -, first a letter or digit; "base" is reserved."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
