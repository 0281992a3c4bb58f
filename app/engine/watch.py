"""Keeps what is served in step with ADAPTERS_DIR while the server runs.

Knows when something changed; what to do about it is install.py's.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from watchfiles import awatch

from app.engine.install import Installer

log = logging.getLogger(__name__)
LOOK_AGAIN_S = 5.0  # for a folder that is not there yet


async def watch(installer: Installer, adapters_dir: Path) -> None:
    """Serve new and changed folders until cancelled. A failing disk is logged and tried again."""
    while True:
        try:
            await installer.sync_folder(adapters_dir)
            async for _ in awatch(adapters_dir):
                await installer.sync_folder(adapters_dir)
        except FileNotFoundError:
            pass  # not there yet, or no longer
        except OSError as error:
            log.warning("watching %s failed: %s", adapters_dir, error)
        await asyncio.sleep(LOOK_AGAIN_S)
