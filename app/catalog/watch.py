"""Keeps what is served in step with ADAPTERS_DIR while the server runs.

Knows when a folder has changed and come to rest; what to do about it is folders.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from watchfiles import awatch

from app.adapters.files import State, adapter_folders, folder_state, printable
from app.catalog.folders import from_folders, sync_folders
from app.catalog.install import Installer
from app.catalog.registry import Registry

log = logging.getLogger(__name__)
LOOK_AGAIN_S = 5.0  # where the system sends no events: a network folder, a link, a folder made anew
SETTLE_S = 5.0  # without a change, before a folder that is being copied is whole

Folders = Mapping[str, State]


def look(adapters_dir: Path) -> Folders:
    """Every adapter's folder with the state of its files, through links. Raises OSError."""
    return {name: folder_state(adapters_dir / name) for name in adapter_folders(adapters_dir)}


def look_at_start(adapters_dir: Path) -> Folders:
    """The same; none where they cannot be read, which is told once the server is up."""
    try:
        return look(adapters_dir)
    except OSError:
        return {}


async def sync_at_start(
    installer: Installer, adapters_dir: Path, before: Folders, own: set[str]
) -> Folders:
    """Serve the folders that have not changed since `before`; drop the names of those gone.

    own: names whose folder is the base's. Returns these folders; watch() has to look at all others.
    """
    now = await _seen(installer.registry, adapters_dir)
    if not now:
        return {}
    unchanged = {name: state for name, state in now.items() if before.get(name) == state}
    gone = from_folders(installer.registry) - set(now) - own
    again = await sync_folders(installer, adapters_dir, set(unchanged) | gone, at_start=True)
    unlike = frozenset({("", 0, 0, 0, 0)})  # anything there, so that it is looked at again
    return unchanged | dict.fromkeys(again, unlike)


async def watch(installer: Installer, adapters_dir: Path, seen: Folders) -> None:
    """Serve what is new or changed since `seen` once it has come to rest, until cancelled.

    A failing disk is logged and tried again. While ADAPTERS_DIR is missing or holds no adapter,
    nothing changes: a volume that is not mounted looks like this. What was away then is not taken
    for removed until it has been back.
    """
    changed_at: dict[str, float] = {}
    unsure = from_folders(installer.registry) - set(seen)
    while True:
        await _next_event(adapters_dir, SETTLE_S / 4 if changed_at else LOOK_AGAIN_S)
        now = await _seen(installer.registry, adapters_dir)
        if not now:
            unsure = from_folders(installer.registry)
            continue
        moment, unsure, seen = time.monotonic(), unsure - set(now), dict(seen)
        changed = {n for n in now.keys() | seen.keys() if now.get(n) != seen.get(n)}
        changed_at |= dict.fromkeys(changed - unsure, moment)
        seen = now
        due = {name for name, since in changed_at.items() if moment - since >= SETTLE_S}
        changed_at = {name: t for name, t in changed_at.items() if name not in due | unsure}
        again = await sync_folders(installer, adapters_dir, due - unsure)
        changed_at |= dict.fromkeys(again, time.monotonic())


async def _seen(registry: Registry, adapters_dir: Path) -> Folders | None:
    """The folders that are there; None where ADAPTERS_DIR is missing, empty or cannot be read.

    The last is told among the folders that are not served, as what it is.
    """
    key = f"{printable(str(adapters_dir))} (ADAPTERS_DIR)"
    try:
        now = await asyncio.to_thread(look, adapters_dir)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}; what came from it is served on"
        if registry.refused.get(key) != reason:
            log.error("%(folder)s %(reason)s", {"folder": key, "reason": reason})
        registry.refused[key] = reason
        return None
    registry.refused.pop(key, None)
    return now or None


async def _next_event(adapters_dir: Path, at_most_s: float) -> None:
    """Until something happens there; a folder that sends no events is looked at all the same."""
    events = awatch(adapters_dir, rust_timeout=int(1000 * at_most_s), yield_on_timeout=True)
    try:
        async with contextlib.aclosing(events):
            await anext(events, None)
    except Exception:  # no folder, a name that is no text, a folder that may not be read: no events
        await asyncio.sleep(at_most_s)
