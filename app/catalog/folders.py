"""ADAPTERS_DIR's folders, and the base's own, as versions of their names, which go with them.

Knows which folder is to be looked at; when is watch.py's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from app.adapters.files import adapter_folders, looks_like_adapter, printable
from app.adapters.refusals import AdapterRejected
from app.catalog.change import Change, audit, say_together, write_down
from app.catalog.fetch import reason_of
from app.catalog.install import Installer
from app.catalog.pointer import deleted, valid_name
from app.catalog.registry import Registry
from app.catalog.store import StoreFull, StoreUnavailable

log = logging.getLogger(__name__)
SERVED_ON = (
    "its folder is gone, and it is served on: clients have put versions, a trial or a quota by "
    "this name; DELETE it if it is to go"
)


async def sync_folders(
    installer: Installer, adapters_dir: Path, names: set[str], *, at_start: bool = False
) -> set[str]:
    """Serve each of these folders of ADAPTERS_DIR whose content is new, as if it had been PUT.

    A name whose folder is gone is gone, too, unless a client has put anything by that name. Returns
    the folders that a failing or full disk refused: they are to be tried again. at_start: one line
    in the log for all that are new.
    """
    refused = installer.registry.refused
    new: list[Change] = []
    again: set[str] = set()
    for name in sorted(names):
        source, printed = adapters_dir / name, printable(name)
        before = refused.pop(printed, None)
        installer.registry.folder_gone.pop(printed, None)
        try:
            if not await asyncio.to_thread(looks_like_adapter, source):
                await _gone(installer, name)
                continue
            if not valid_name(name):
                raise AdapterRejected(f"{printed} is no adapter name (a-z 0-9 . _ -)")
            change = Change("folder", name)
            await installer.install_folder(name, source, change)
        except Exception as error:  # one folder must not keep the others from being served
            refused[printed] = reason_of(error)
            if refused[printed] != before:
                why = {"folder": str(adapters_dir / printed), "reason": refused[printed]}
                log.error("folder %(folder)s is not served: %(reason)s", why)
            if isinstance(error, (StoreFull, StoreUnavailable, OSError)):
                again.add(name)
            continue
        if change.done:
            new.append(change)
            write = audit if at_start else write_down
            await asyncio.to_thread(write, installer.store, change)
    if at_start:
        say_together(new)
    return again


async def sync_own(installer: Installer, base: Path, wanted: set[str]) -> set[str]:
    """Serve the wanted adapters that have a folder in the base's own, as if it were ADAPTERS_DIR.

    Returns their names.
    """
    own = wanted & await asyncio.to_thread(adapter_folders, base)
    await sync_folders(installer, base, own)
    return own


async def _gone(installer: Installer, name: str) -> None:
    store = installer.store
    async with installer.changing:
        pointer = await installer.fetcher.ask(store.look, name)
        if pointer.version is None or not pointer.from_folder:
            return
        if pointer.has_clients_changes:
            installer.registry.folder_gone[name] = SERVED_ON
            log.warning("adapter %(name)s: %(reason)s", {"name": name, "reason": SERVED_ON})
            return
        change = Change("folder_gone", name, before=pointer.version)
        await installer.move(pointer, replace(deleted(pointer), folder=None), change)
        installer.registry.remove(name)
        await asyncio.to_thread(write_down, store, change)


def from_folders(registry: Registry) -> set[str]:
    """The names whose version came from a folder."""
    return {name for name, served in registry.names.items() if served.pointer.from_folder}
