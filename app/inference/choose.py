"""Which adapter runs which input: one for all, one each, a version, the base, or several.

Choosing gives the version itself, which the call holds until its answer has left. Knows names;
knows no tokens and no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from app.adapters.refusals import AdapterRejected
from app.adapters.sums import CannotCompose
from app.catalog.draw import takes_part
from app.catalog.pointer import Trial
from app.catalog.registry import SHORTEST_VERSION, Name, UnknownVersion
from app.catalog.store import StoreUnavailable
from app.catalog.terms import BETWEEN, Spelled, read_terms
from app.inference.caller import Arm, Caller
from app.inference.errors import Ambiguous, Forbidden, Invalid, TooManyInputs
from app.inference.runtime import Runtime
from app.model.version import Version

log = logging.getLogger(__name__)
BASE = "base"
MOST_SUMS = 8  # of one request


@dataclass(frozen=True)
class Selection:
    """adapters: `name`, `name@version` or `base`; several: every input through each; none: the
    base.

    per_input: one for each input instead; None in it is the base. Each may be a weighted sum
    (catalog/terms.py).
    """

    adapters: Sequence[str] = ()
    per_input: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Chosen:
    """spelled: as the caller named it. version: what runs; the base is one, too.

    arm: of the name's trial, where it has one. shadow: the version that is to run beside this one.
    parts: of a weighted sum. resident: whether it was in memory when it was asked for.
    """

    spelled: str
    name: str
    version: Version
    arm: Arm | None = None
    shadow: str | None = None
    parts: tuple[tuple[Chosen, float], ...] = ()
    resident: bool = True

    @property
    def stamp(self) -> str:
        """name@digest; of a sum name@digest:weight of each term, which asks for the same again."""
        if self.parts:
            return "+".join(f"{chosen.stamp}:{weight!r}" for chosen, weight in self.parts)
        return f"{self.name}@{self.version.digest}"

    @property
    def names(self) -> list[str]:
        """The adapters that take part: one, but for a sum."""
        return [chosen.name for chosen, _ in self.parts] or [self.name]


@dataclass(frozen=True)
class Choice:
    """lines: each a Chosen per input; several lines only in a fan-out over adapters."""

    lines: list[list[Chosen]]
    fan_out: bool

    @property
    def distinct(self) -> list[Chosen]:
        """Every adapter once, in the order of use."""
        by_stamp = {chosen.stamp: chosen for line in self.lines for chosen in line}
        return list(by_stamp.values())


async def choose(
    runtime: Runtime, caller: Caller, selection: Selection | Choice, count: int
) -> Choice:
    """Resolve a selection for `count` inputs; a choice that was made before stands.

    Nothing is loaded for a call that is too large. Raises TooManyInputs, Invalid, Ambiguous where
    its two halves disagree, and what resolve raises.
    """
    if isinstance(selection, Choice):
        return selection
    names = list(dict.fromkeys(selection.adapters))
    _refuse_too_many(runtime, count, len(names))
    _refuse_many_sums(runtime, {*names, *filter(None, selection.per_input or ())})
    if selection.per_input is None:
        chosen = [await resolve(runtime, caller, name) for name in names or [BASE]]
        choice = Choice([[c] * count for c in chosen], len(selection.adapters) > 1)
    else:
        spelled = [BASE if name is None else name for name in selection.per_input]
        if len(spelled) != count:
            raise Invalid("adapters", f"has {len(spelled)} entries for {count} inputs")
        each = {with_plus(name) for name in spelled}
        if names and (len(names) > 1 or each != {with_plus(names[0])}):
            raise Ambiguous(
                "?adapter= in the query and adapters in the body disagree: send one of them"
            )
        by_name = {name: await resolve(runtime, caller, name) for name in dict.fromkeys(spelled)}
        choice = Choice([[by_name[name] for name in spelled]], False)
    caller.trace.arms = [(c.name, c.arm) for c in choice.distinct if c.arm]
    return choice


def _refuse_too_many(runtime: Runtime, count: int, adapters: int) -> None:
    if count * max(1, adapters) > runtime.max_inputs:
        times = f" through {adapters} adapters" if adapters > 1 else ""
        raise TooManyInputs(
            f"{count} inputs{times} are over the {runtime.max_inputs} of one request "
            "(MAX_CLIENT_BATCH): send several requests"
        )


def _refuse_many_sums(runtime: Runtime, spelled: Iterable[str]) -> None:
    """Raises CannotCompose: each sum of one request is an adapter of its own in memory."""
    if sum(read_terms(name_of(runtime, name)) is not None for name in spelled) > MOST_SUMS:
        raise CannotCompose(
            f"one request asks for over {MOST_SUMS} weighted sums of adapters: send several, or "
            "keep sums by POST /adapters/{name}/compose"
        )


def names_in(runtime: Runtime, spelled: str) -> list[str]:
    """The adapters that a spelling names, without versions: one, or each of a sum's."""
    name = name_of(runtime, spelled)
    with suppress(CannotCompose):
        terms = read_terms(name)
        if terms is not None:
            return [name_of(runtime, term.name.partition("@")[0]) for term in terms]
    return [name_of(runtime, spelled.partition("@")[0])]


def alike(runtime: Runtime, spelled: str) -> str:
    """What all spellings of the same adapter, or sum, have in common; versions aside."""
    names = names_in(runtime, spelled)
    with suppress(CannotCompose):
        terms = read_terms(name_of(runtime, spelled)) or []
        weights = [term.weight for term in terms]
        if weights:
            return "+".join(f"{name}:{w!r}" for name, w in zip(names, weights, strict=True))
    return names[0]


def with_plus(spelled: str) -> str:
    """A query turns the + of a sum into a space."""
    return BETWEEN.sub("+", spelled)


def name_of(runtime: Runtime, spelled: str) -> str:
    """The adapter that is meant: the base's id, whole or what is behind its last slash, is `base`;
    `base-id:adapter` is the adapter.
    """
    if spelled in runtime.registry.names:
        return spelled
    base_id = runtime.engine.encoder.files.id
    for own in (base_id, base_id.rpartition("/")[2]):
        if spelled == own:
            return BASE
        if spelled.startswith(f"{own}:"):
            return spelled.removeprefix(f"{own}:")
    return spelled


async def resolve(runtime: Runtime, caller: Caller, spelled: str) -> Chosen:
    """A name, name@version, base, the base's id, or a weighted sum of such.

    Raises UnknownAdapter, UnknownVersion, Forbidden, CannotCompose, CompositionsFull,
    OlderThanAsked, StoreUnavailable.
    """
    terms = read_terms(name_of(runtime, spelled))
    if terms is not None:
        return await _sum(runtime, caller, spelled, terms)
    name, prefix = _split(runtime, caller, spelled)
    if name == BASE:
        return _base(runtime, spelled, prefix)
    entry = await runtime.names.get(name, caller.at_least(name), prefix)
    if prefix is None:
        return await _current(runtime, caller, entry)
    return await _pinned(runtime, entry, spelled, prefix)


async def _pinned(runtime: Runtime, entry: Name, spelled: str, prefix: str | None) -> Chosen:
    resident = runtime.registry.holds(entry, prefix)
    version = await runtime.fetcher.version(entry, prefix)
    return Chosen(spelled, entry.name, version, resident=resident)


def _split(runtime: Runtime, caller: Caller, spelled: str) -> tuple[str, str | None]:
    """The name and the version's first digits. Raises Forbidden."""
    name, at, prefix = spelled.partition("@")
    name = name_of(runtime, name)
    if not caller.may_use(name):
        raise Forbidden(name)
    return name, prefix if at else None


async def _sum(runtime: Runtime, caller: Caller, spelled: str, terms: list[Spelled]) -> Chosen:
    """Of current versions, or of those that are named: a trial takes no part in a sum."""
    named = [_split(runtime, caller, term.name) for term in terms]
    parts: list[tuple[Chosen, float]] = []
    for term, (name, prefix) in zip(terms, named, strict=True):
        if name == BASE:
            chosen = _base(runtime, BASE, prefix)
        else:
            entry = await runtime.names.get(name, caller.at_least(name), prefix)
            chosen = await _pinned(runtime, entry, name, prefix)
        parts.append((chosen, term.weight))
    if len(parts) == 1 and parts[0][1] == 1:
        return replace(parts[0][0], spelled=spelled)
    total = await runtime.compositions.get([(c.name, c.version, w) for c, w in parts])
    resident = all(chosen.resident for chosen, _ in parts)
    plus = with_plus(spelled)
    return Chosen(plus, plus, total, parts=tuple(parts), resident=resident)


def _base(runtime: Runtime, spelled: str, prefix: str | None) -> Chosen:
    base = runtime.engine.base
    if prefix is not None and (
        len(prefix) < SHORTEST_VERSION or not base.digest.startswith(prefix.lower())
    ):
        raise UnknownVersion(f"the base's version is {base.digest[:SHORTEST_VERSION]}")
    return Chosen(spelled, BASE, base)


async def _current(runtime: Runtime, caller: Caller, entry: Name) -> Chosen:
    """What answers for a name without a version: its trial's version, or its own."""
    name, trial = entry.name, entry.pointer.trial
    if trial is None:
        return await _pinned(runtime, entry, name, None)
    drawn = takes_part(trial, _sticky_value(caller, trial))
    if drawn and trial.mode == "canary":
        try:
            resident = trial.version in runtime.registry.residents
            version = await runtime.fetcher.load_stored(trial.version)
            return Chosen(name, name, version, "canary", resident=resident)
        except (AdapterRejected, StoreUnavailable, OSError) as error:
            why = {"version": trial.version, "name": name, "reason": str(error)}
            log.error("canary %(version)s of %(name)s cannot be loaded: %(reason)s", why)
    current = await _pinned(runtime, entry, name, None)
    shadow = trial.version if drawn and trial.mode == "shadow" else None
    return replace(current, arm="current", shadow=shadow)


def _sticky_value(caller: Caller, trial: Trial) -> str | None:
    """What the call has in common with others that are to meet the same version."""
    if trial.sticky_by is None:
        return None
    if trial.sticky_by != "client":
        return caller.labels.get(trial.sticky_by)
    return caller.name or caller.address
