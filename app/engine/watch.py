"""Keeps what is served in step with ADAPTERS_DIR while the server runs.

Knows when something changed; what to do about it is install.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from watchfiles import awatch

from app.engine.install import Installer

log = logging.getLogger(__name__)
LOOK_AGAIN_S = 5.0  # where the system sends no events: a network folder, a link, a folder made anew

State = set[tuple[str, int, int]]


async def watch(installer: Installer, adapters_dir: Path) -> None:
    """Serve new and changed folders until cancelled. A failing disk is logged and tried again."""
    seen: State = set()
    while True:
        try:
            async for _ in awatch(
                adapters_dir, rust_timeout=int(1000 * LOOK_AGAIN_S), yield_on_timeout=True
            ):
                now = await asyncio.to_thread(_state, adapters_dir)
                if now != seen:
                    await installer.sync_folder(adapters_dir)
                    seen = now
        except FileNotFoundError:
            pass  # not there yet, or no longer
        except OSError as error:
            log.warning("watching %s failed: %s", adapters_dir, error)
        await asyncio.sleep(LOOK_AGAIN_S)


def _state(adapters_dir: Path) -> State:
    """Name, time and size of every adapter's file, through links."""
    found: State = set()
    for path in [*adapters_dir.glob("*/*"), *adapters_dir.glob("*/*/config.json")]:
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.add((str(path), stat.st_mtime_ns, stat.st_size))
    return found
