"""Which adapter runs which input: the query's, the body's, a version, the base, or several.

Resolving gives the version itself, which the request holds until its answer has left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.refusals import AdapterRejected
from app.api.errors import Refusal, invalid
from app.api.keys import caller, refuse_forbidden
from app.api.serving import Serving
from app.catalog.draw import takes_part
from app.catalog.pointer import Trial
from app.catalog.registry import (
    SHORTEST_VERSION,
    Name,
    UnknownVersion,
    find_version,
)
from app.catalog.store import StoreUnavailable
from app.engine.version import Version

log = logging.getLogger(__name__)
BASE = "base"


class AdapterQuery(BaseModel):
    """The query of /embed and /classify; a misspelled parameter is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")

    adapter: list[str] = Field(
        default_factory=list,
        description="An adapter, `name@version`, or `base`; several: every input through each. "
        "None: the plain base.",
        examples=[["sentiment"]],
    )


ChosenByQuery = Annotated[AdapterQuery, Query()]


@dataclass(frozen=True)
class Chosen:
    """spelled: as the client named it. digest: the version's, or the base's. version None: the base.

    arm: of the name's trial, where it has one. shadow: the version that is to run beside this one.
    """

    spelled: str
    name: str
    digest: str
    version: Version | None
    arm: Literal["current", "canary"] | None = None
    shadow: str | None = None

    @property
    def stamp(self) -> str:
        """For the X-Adapter header."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True)
class Choice:
    """lines: one Chosen per input each; several lines only where fan_out."""

    lines: list[list[Chosen]]
    fan_out: bool

    @property
    def distinct(self) -> list[Chosen]:
        """Every adapter once, in the order of use."""
        found = {c.stamp: c for line in self.lines for c in line}
        return list(found.values())


async def choose(
    request: Request,
    serving: Serving,
    query: Sequence[str],
    body: Sequence[str | None] | None,
    count: int,
) -> Choice:
    """Raises UnknownAdapter, UnknownVersion; Refusal where query and body disagree or the key may not."""
    names = list(dict.fromkeys(query))
    if body is not None:
        if len(body) != count:
            raise invalid("adapters", f"has {len(body)} entries for {count} inputs")
        asked = [BASE if name is None else name for name in body]
        if names and (len(names) > 1 or set(asked) != set(names)):
            raise Refusal(
                400,
                "malformed",
                "?adapter= in the query and adapters in the body disagree: send one of them",
            )
        known = {name: await resolve(request, serving, name) for name in dict.fromkeys(asked)}
        choice = Choice([[known[name] for name in asked]], False)
    else:
        chosen = [await resolve(request, serving, name) for name in names or [BASE]]
        choice = Choice([[c] * count for c in chosen], len(query) > 1)
    request.state.arms = [(c.name, c.arm) for c in choice.distinct if c.arm]
    return choice


async def resolve(request: Request, serving: Serving, spelled: str) -> Chosen:
    """A name, name@version or base. Raises UnknownAdapter, UnknownVersion, Refusal."""
    name, at, prefix = spelled.partition("@")
    refuse_forbidden(request, name)
    registry = serving.registry
    if name == BASE:
        digest = serving.engine.encoder.digest
        if at and (len(prefix) < SHORTEST_VERSION or not digest.startswith(prefix.lower())):
            raise UnknownVersion(f"the base's version is {digest[:SHORTEST_VERSION]}")
        return Chosen(spelled, BASE, digest, None)
    if not at:
        return await _current(request, serving, registry.get(name))
    found = registry.get(name)
    digest = find_version(name, found.pointer.history, prefix)
    if digest == found.digest:
        return Chosen(spelled, name, digest, await serving.fetcher.ready(found))
    try:
        version = registry.residents.use(digest) or await serving.fetcher.load_stored(digest)
    except (AdapterRejected, OSError):  # deleted meanwhile, or damaged on disk
        raise UnknownVersion(f"{name} has version {digest}, but it cannot be loaded") from None
    return Chosen(spelled, name, digest, version)


async def _current(request: Request, serving: Serving, found: Name) -> Chosen:
    """What answers for a name without a version: its trial's version, or its own."""
    name, trial = found.name, found.pointer.trial
    if trial is None:
        version = await serving.fetcher.ready(found)
        return Chosen(name, name, version.digest, version)
    part = takes_part(trial, _sticks(request, trial))
    if part and trial.mode == "canary":
        try:
            version = await serving.fetcher.load_stored(trial.version)
            return Chosen(name, name, version.digest, version, "canary")
        except (AdapterRejected, StoreUnavailable) as error:
            log.error("canary %s of %s cannot be loaded: %s", trial.version[:12], name, error)
    version = await serving.fetcher.ready(found)
    shadow = trial.version if part and trial.mode == "shadow" else None
    return Chosen(name, name, version.digest, version, "current", shadow)


def _sticks(request: Request, trial: Trial) -> str | None:
    """What the request has in common with others that are to meet the same version."""
    if trial.sticky_by is None:
        return None
    if trial.sticky_by != "client":
        return request.headers.get(trial.sticky_by)
    return caller(request) or (request.client.host if request.client else "")
