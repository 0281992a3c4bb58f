"""Which adapter runs which input: the query's, the body's, a version, the base, or several.

Resolving gives the version itself, which the request holds until its answer has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.registry import SHORTEST_VERSION, UnknownVersion, find_version
from app.adapters.residents import Version
from app.adapters.upload import AdapterRejected
from app.api.errors import Refusal, invalid
from app.api.serving import Serving

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
    """spelled: as the client named it. digest: the version's, or the base's. version None: the base."""

    spelled: str
    name: str
    digest: str
    version: Version | None

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
    serving: Serving, query: Sequence[str], body: Sequence[str | None] | None, count: int
) -> Choice:
    """Raises UnknownAdapter, UnknownVersion; Refusal where query and body disagree."""
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
        known = {name: await resolve(serving, name) for name in dict.fromkeys(asked)}
        return Choice([[known[name] for name in asked]], False)
    chosen = [await resolve(serving, name) for name in names or [BASE]]
    return Choice([[c] * count for c in chosen], len(query) > 1)


async def resolve(serving: Serving, spelled: str) -> Chosen:
    """A name, name@version or base. Raises UnknownAdapter, UnknownVersion."""
    name, at, prefix = spelled.partition("@")
    registry = serving.registry
    if name == BASE:
        digest = serving.engine.encoder.digest
        if at and (len(prefix) < SHORTEST_VERSION or not digest.startswith(prefix.lower())):
            raise UnknownVersion(f"the base's version is {digest[:SHORTEST_VERSION]}")
        return Chosen(spelled, BASE, digest, None)
    if not at:
        version = await serving.fetcher.ready(registry.get(name))
        return Chosen(spelled, name, version.digest, version)
    found = registry.get(name)
    digest = find_version(name, found.history, prefix)
    if digest == found.digest:
        return Chosen(spelled, name, digest, await serving.fetcher.ready(found))
    try:
        version = registry.residents.use(digest) or await serving.fetcher.load_stored(digest)
    except (AdapterRejected, OSError):  # deleted meanwhile, or damaged on disk
        raise UnknownVersion(f"{name} has version {digest}, but it cannot be loaded") from None
    return Chosen(spelled, name, digest, version)
