"""Other labels for a name's stored files: a new version of the same bytes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from app.adapters.receiving.copying import copy_adapter
from app.adapters.recipe import Options
from app.adapters.refusals import AdapterRejected
from app.adapters.values import ProblemType
from app.catalog.change import Change
from app.catalog.fetch import reason_of
from app.catalog.install import How, Installed, Installer, Precondition
from app.catalog.load import options_from_json
from app.catalog.open_store import receiving
from app.catalog.store import StoreUnavailable

TRIES = 8  # each reads and measures what the name has become


class _MovedMeanwhile(Exception):
    """The name has other files than those that were copied."""


async def relabel(
    installer: Installer,
    name: str,
    labels: tuple[str, ...],
    problem_type: ProblemType | None,
    precondition: Precondition,
    change: Change,
) -> Installed:
    """As a PUT of the served version's files with these labels. problem_type None: as it was.

    Raises UnknownAdapter, PreconditionFailed, AdapterRejected, StoreFull, StoreUnavailable.
    """

    async def attempt() -> Installed:
        installer.names.refuse_unreachable()
        served = (await installer.fetcher.pointer(name)).version

        def unmoved(current: str | None) -> None:
            precondition(current)
            if current != served:
                raise _MovedMeanwhile

        async with receiving(installer.store) as tmp:
            folder = tmp / "adapter"
            before = await _copy(installer, served or "", folder)
            options = replace(
                before, labels=labels, problem_type=problem_type or before.problem_type
            )
            how = How(options, allow_noop=True, precondition=unmoved, change=change)
            return await installer.install(name, folder, None, how)

    for _ in range(TRIES):
        with suppress(_MovedMeanwhile):
            return await attempt()
    raise StoreUnavailable(f"{name} is moved again and again meanwhile: try again")


async def _copy(installer: Installer, digest: str, folder: Path) -> Options:
    """Copy a version's files into a folder that is not there yet; returns the query's options.

    Raises StoreUnavailable.
    """
    try:
        async with installer.changing:  # nobody sets them aside meanwhile
            stored, options = await installer.fetcher.files(digest)
            await asyncio.to_thread(copy_adapter, stored, folder)
            return options_from_json(options)
    except (AdapterRejected, OSError) as error:
        raise StoreUnavailable(f"the stored files cannot be read: {reason_of(error)}") from None
