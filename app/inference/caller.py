"""Who calls, and what that allows: one value, made once, that goes all the way down.

A server makes it from a request (api/caller.py); a script makes its own: `Caller()` may do
everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from app.catalog.change import Change
from app.engine.admission import Asker

Arm = Literal["current", "canary"]


@dataclass(frozen=True)
class Key:
    """name: for logs and histories. digest: sha256 of the secret, which is kept nowhere.

    adapters: patterns as in a shell; None: all. tokens_per_s: its rate limit; None: any amount.
    """

    name: str
    digest: bytes
    admin: bool
    adapters: tuple[str, ...] | None = None
    tokens_per_s: float | None = None

    def may_use(self, adapter: str) -> bool:
        """Whether the key allows the adapter. The base is everybody's."""
        if self.adapters is None or adapter == "base":
            return True
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


@dataclass(eq=False)
class Trace:
    """What becomes known of a call on its way, also of one that fails: metrics are counted by it.

    adapters: the names it runs through. arms: of those on trial, which version answers. versions:
    name@digest of each. tokens: of all its sequences. steps: what it did before the model ran, each
    from and to a time of time.perf_counter(). refusal: the type of the error that it was answered
    with. span: as tracing knows it.
    """

    adapters: list[str] = field(default_factory=list)
    arms: list[tuple[str, Arm]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    tokens: int = 0
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    refusal: str | None = None
    span: object = None


@dataclass(frozen=True, eq=False)
class Caller:
    """key: None where none was needed. asker: as the engine knows it, for its turn in the queue.

    labels: what it says of itself by name (over HTTP its headers), which a canary may stick by.
    revisions: what it asks of names, at least; None: of all others. trace, and change where it asks
    for one: filled on the way.
    """

    key: Key | None = None
    asker: Asker = field(default_factory=Asker)
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str | None, int] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)
    change: Change = field(default_factory=Change)

    @property
    def name(self) -> str | None:
        """The key's, for a history."""
        return self.key.name if self.key else None

    def at_least(self, adapter: str) -> int:
        """The revision that it asks of the adapter; 0: any will do."""
        return self.revisions.get(adapter, self.revisions.get(None, 0))

    def may_use(self, adapter: str) -> bool:
        """Whether it may use, and know of, the adapter."""
        return self.key is None or self.key.may_use(adapter)

    @property
    def sees_all(self) -> bool:
        """Whether it may know of every adapter, also of those that are gone."""
        return self.key is None or self.key.adapters is None

    def usable(self, names: Iterable[str]) -> list[str]:
        """Those of the names that it may know of, sorted. Blocks: there may be 100,000 of them."""
        return sorted(name for name in names if self.may_use(name))
