"""Canaries and shadows begin and end: a name's other version, in its pointer.

Knows names and versions; which requests take part is draw.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app.adapters.refusals import AdapterRejected
from app.catalog.disk import StoreUnavailable
from app.catalog.fetch import Fetcher
from app.catalog.pointer import Entry, Pointer, Trial, moved, now
from app.catalog.registry import Name, find_version

if TYPE_CHECKING:
    from app.catalog.install import Installer

log = logging.getLogger(__name__)


class NoTrial(Exception):
    """There is nothing to be promoted or aborted."""


async def begin_trial(installer: Installer, name: str, trial: Trial) -> Name:
    """Let another version that the name holds take part; trial.version: 12 or more of its digits.

    Raises UnknownAdapter, UnknownVersion, AdapterRejected, StoreFull, StoreUnavailable.
    """
    fetcher = installer.fetcher
    async with installer.changing:
        pointer = await fetcher.pointer(name)
        served = installer.registry.get(name)
        digest = find_version(name, pointer.history, trial.version)
        if digest == served.digest:
            raise AdapterRejected(f"{digest[:12]} is what {name} is served by already")
        version = await fetcher.load_stored(digest)
        if not _alike(served.report, version.report):
            raise AdapterRejected(
                f"{digest[:12]} is for {version.report['task']} and the current version for "
                f"{served.report['task']}: clients would get now the one and now the other"
            )
        after = replace(pointer, trial=replace(trial, version=digest, since=now()))
        kept = await asyncio.to_thread(installer.store.move, pointer, after)
        return fetcher.repoint(kept, served)


async def end_trial(installer: Installer, name: str, by: str | None, *, promote: bool) -> Name:
    """Point the name at its trial's version, or leave it where it is.

    Raises UnknownAdapter, NoTrial, AdapterRejected, StoreFull, StoreUnavailable.
    """
    fetcher, move = installer.fetcher, installer.store.move
    async with installer.changing:
        pointer = await fetcher.pointer(name)
        if pointer.trial is None:
            raise NoTrial(f"{name} has no canary and no shadow")
        if not promote:
            served = installer.registry.get(name)
            kept = await asyncio.to_thread(move, pointer, replace(pointer, trial=None))
            return fetcher.repoint(kept, served)
        version = await fetcher.load_stored(pointer.trial.version)
        entry = Entry(version.digest, now(), by, "promote")
        after = moved(pointer, entry, installer.keep_versions)
        return fetcher.serve(await asyncio.to_thread(move, pointer, after), version)


async def with_fitting_trial(
    fetcher: Fetcher, after: Pointer, report: Mapping[str, Any]
) -> Pointer:
    """A trial of a version that answers in another shape than the current one is over."""
    if after.trial is None:
        return after
    try:
        trial = await fetcher.load_stored(after.trial.version)
        if _alike(report, trial.report):
            return after
    except (AdapterRejected, StoreUnavailable):
        pass
    log.warning("the %s of %s is over: it does not fit", after.trial.mode, after.name)
    return replace(after, trial=None)


def _alike(report: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions answer the same requests, in the same shape."""
    return (report["task"], report["has_head"]) == (other["task"], other["has_head"])
