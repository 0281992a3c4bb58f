"""When the store's versions that no name holds are removed; how is the store's.

Knows no names and no files.
"""

from __future__ import annotations

import asyncio
import contextlib

from app.catalog.fetch import Fetcher
from app.catalog.store import Store, StoreUnavailable

GRACE_S = 60.0  # from a commit to its name's move it takes milliseconds, and a reading seconds
EVERY_S = 60.0


async def collect(store: Store, fetcher: Fetcher) -> None:
    """Collect at start, and again after names have moved, until cancelled."""
    epoch, marks_remain = "", False
    while True:
        with contextlib.suppress(StoreUnavailable):
            now = await fetcher.ask(store.epoch)
            if now != epoch or marks_remain:
                marks_remain = await fetcher.ask(store.collect, GRACE_S)
                epoch = now
        await asyncio.sleep(EVERY_S)
