"""Where a name points, where it has pointed, and how it moves: pure values, and their JSON.

Knows no files and no store.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED = ("base",)
ENTRIES_PER_VERSION = 4  # of a history, on average: whoever goes to and fro fills no disk
FORMAT = 2  # of the JSON; what has no format is 1, and is read
RETIRED = {"merge"}  # fields of format 1 that mean nothing any more

How = Literal["put", "folder", "rollback", "promote", "stage"]


class OlderThanAsked(Exception):
    """The name has not reached the revision that a caller wants at least."""


class NewerPointer(Exception):
    """The JSON is whole and holds what this server does not know: it must not be written over."""


@dataclass(frozen=True)
class Entry:
    """One version that a name has held: since when, through whom (a key's name) and by what.

    how "stage": held beside the current one, without being pointed at.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    version: str
    created: str
    by: str | None = None
    how: How = "put"


@dataclass(frozen=True)
class Trial:
    """Another version of a name that takes part in its traffic until it is promoted or aborted.

    canary: it answers `percent` of the requests, always the same ones where sticky_by names a
    header (or "client"). shadow: it runs `percent` of them as well, and the current version
    answers.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    mode: Literal["canary", "shadow"]
    version: str
    percent: float
    sticky_by: str | None = None
    since: str = ""
    by: str | None = None


@dataclass(frozen=True)
class Pointer:
    """Where a name points. One with version None and a revision is a tombstone: it was deleted.

    revision: grows by one with every move and never goes back; 0: nothing was ever stored.
    folder: the last content taken from ADAPTERS_DIR for this name. history: oldest first.
    tokens_per_s: what all clients together may ask of it; None: any amount.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    version: str | None = None
    revision: int = 0
    folder: str | None = None
    history: tuple[Entry, ...] = ()
    tokens_per_s: float | None = None
    trial: Trial | None = None

    def created(self, version: str) -> str:
        """Since when the name points at the version."""
        times = (e.created for e in reversed(self.history) if e.version == version)
        return next(times, None) or now()

    @property
    def versions(self) -> set[str]:
        """All that the name holds."""
        used = {self.version, self.trial.version if self.trial else None} - {None}
        return {e.version for e in self.history} | {version for version in used if version}

    @property
    def from_folder(self) -> bool:
        """Whether a folder brought its version, and no client. A rollback does not change that."""
        origins = [e.how for e in self.history if e.how in ("put", "folder", "promote")]
        return origins[-1:] == ["folder"]

    @property
    def has_clients_changes(self) -> bool:
        """Whether a client has put anything by this name: versions, a trial, a quota."""
        put = any(entry.how in ("put", "stage", "promote") for entry in self.history)
        return put or self.trial is not None or self.tokens_per_s is not None


def current_index(history: tuple[Entry, ...], version: str | None) -> int | None:
    """Where in the history the version was last pointed at."""
    indices = (i for i, e in enumerate(history) if e.version == version and e.how != "stage")
    return max(indices, default=None)


def moved(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name points at the entry's version; `keep` of its versions stay, and those in use."""
    trial = before.trial if before.trial and before.trial.version != entry.version else None
    after = replace(before, version=entry.version, trial=trial)
    return replace(after, history=_trimmed(after, (*before.history, entry), keep))


def staged(before: Pointer, entry: Entry, keep: int) -> Pointer:
    """The name holds the entry's version too, and points where it pointed."""
    if entry.version in {e.version for e in before.history}:
        return before
    return replace(before, history=_trimmed(before, (*before.history, entry), keep))


def deleted(before: Pointer) -> Pointer:
    """Nothing of the name remains but which folder content is not to come back by itself."""
    return Pointer(before.name, None, before.revision, before.folder)


def _trimmed(pointer: Pointer, history: tuple[Entry, ...], keep: int) -> tuple[Entry, ...]:
    """The entries of the last versions and of those in use, and not too many of them."""
    latest = list(dict.fromkeys(e.version for e in reversed(history)))
    trial = [pointer.trial.version] if pointer.trial else []
    versions = {*latest[:keep], pointer.version, *trial}
    entries = [e for e in history if e.version in versions]
    last = {e.version: i for i, e in enumerate(entries)}
    pointed = {e.version: i for i, e in enumerate(entries) if e.how != "stage"}
    needed = {*last.values(), *pointed.values()}
    old = len(entries) - ENTRIES_PER_VERSION * keep
    return tuple(e for i, e in enumerate(entries) if i >= old or i in needed)


def to_json(pointer: Pointer) -> dict[str, Any]:
    """With its format, and a digest of it all, so that a flipped bit is not believed."""
    members = {k: v for k, v in asdict(pointer).items() if k != "name"}
    members |= {"deleted": pointer.version is None, "format": FORMAT}
    return {**members, "sha256": digest_of(members)}


def from_json(name: str, raw: Mapping[str, Any]) -> Pointer:
    """Raises ValueError, TypeError, AttributeError for what no server wrote; NewerPointer."""
    members = {k: v for k, v in raw.items() if k != "sha256"}
    if "sha256" in raw and raw["sha256"] != digest_of(members):
        raise ValueError("it is not what was written")
    number, _ = members.pop("format", 1), members.pop("deleted", None)
    if isinstance(number, int) and number > FORMAT:
        raise NewerPointer(f"has format {number}, and this server knows {FORMAT} and before")
    if missing := {"version", "revision", "folder", "history"} - members.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if number == 1:
        members = {k: v for k, v in members.items() if k not in RETIRED}
    if unknown := members.keys() - _FIELDS:
        raise NewerPointer(f"has {', '.join(sorted(unknown))}, which this server does not know")
    try:
        return _POINTER.validate_python({**members, "name": name})
    except ValidationError as error:
        if "sha256" not in raw:
            raise
        # A server has written just this, and not one like this.
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise NewerPointer(f"has a {where} that this server does not know") from None


_POINTER = TypeAdapter(Pointer)
_FIELDS = {f.name for f in fields(Pointer)} - {"name"}


def digest_of(members: Mapping[str, Any]) -> str:
    """sha256 of what JSON keeps of it."""
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


def valid_name(name: str) -> bool:
    """1 to 63 of a-z 0-9 . _ -, first a letter or digit; "base" is reserved."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def now() -> str:
    """The time in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
