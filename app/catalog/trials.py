"""Canaries and shadows begin and end: a name's other version, in its pointer.

Knows names and versions; which requests take part is draw.py's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from app.adapters.refusals import AdapterRejected
from app.catalog.change import Change
from app.catalog.fitting import alike
from app.catalog.install import Installer
from app.catalog.pointer import Entry, Trial, moved, now
from app.catalog.registry import Name, find_version
from app.catalog.winning import until_it_wins


class NoTrial(Exception):
    """There is nothing to be promoted or aborted."""


async def begin_trial(installer: Installer, name: str, trial: Trial, change: Change) -> Name:
    """Let another version that the name holds take part; trial.version: 12 or more of its digits.

    Raises UnknownAdapter, UnknownVersion, AdapterRejected, StoreFull, StoreUnavailable.
    """
    async with installer.turn():
        return await until_it_wins(partial(_begin, installer, name, trial, change))


async def _begin(installer: Installer, name: str, trial: Trial, change: Change) -> Name:
    """Raises StaleRevision, and as begin_trial()."""
    fetcher = installer.fetcher
    pointer = await fetcher.pointer(name)
    served = await installer.names.get(name, pointer.revision)
    change.of(name, served.digest, None)
    digest = find_version(name, pointer.history, trial.version)
    change.of(name, served.digest, digest)
    if digest == served.digest:
        raise AdapterRejected(f"{digest[:12]} is what {name} is served by already")
    version = await fetcher.load_stored(digest)
    if not alike(served.report, version.report):
        raise AdapterRejected(
            f"{digest[:12]} is for {version.report.task} and the current version for "
            f"{served.report.task}: clients would get now the one and now the other"
        )
    begun = replace(trial, version=digest, since=now(), by=change.by)
    pointer = await installer.move(pointer, replace(pointer, trial=begun), change)
    return fetcher.point(pointer, served.report, moved=True)


async def end_trial(installer: Installer, name: str, change: Change, *, promote: bool) -> Name:
    """Point the name at its trial's version, or leave it where it is.

    Raises UnknownAdapter, NoTrial, AdapterRejected, StoreFull, StoreUnavailable.
    """
    async with installer.turn():
        return await until_it_wins(partial(_end, installer, name, change, promote=promote))


async def _end(installer: Installer, name: str, change: Change, *, promote: bool) -> Name:
    """Raises StaleRevision, and as end_trial()."""
    fetcher = installer.fetcher
    pointer = await fetcher.pointer(name)
    trial = pointer.trial
    change.of(name, pointer.version, pointer.version)
    if trial is None:
        raise NoTrial(f"{name} has no canary and no shadow")
    if not promote:
        served = await installer.names.get(name, pointer.revision)
        change.of(name, trial.version, pointer.version)
        pointer = await installer.move(pointer, replace(pointer, trial=None), change)
        return fetcher.point(pointer, served.report, moved=True)
    change.of(name, pointer.version, trial.version)
    version = await fetcher.load_stored(trial.version, moved=True)
    entry = Entry(version.digest, now(), change.by, "promote")
    after = moved(pointer, entry, installer.keep_versions)
    return fetcher.serve(await installer.move(pointer, after, change), version, moved=True)
