"""Opens the store that a server works with; another kind of store is chosen here.

Knows which stores there are; knows nothing of what they hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from app.catalog.disk import alone
from app.catalog.local_store import LocalStore
from app.catalog.store import Store


@contextmanager
def open_store(place: Path) -> Iterator[Store]:
    """The store at that place, which no other server opens meanwhile.

    Read-only where it cannot be written. Raises StoreUnusable.
    """
    with alone(place) as may_write:
        yield LocalStore(place, may_write=may_write)


@asynccontextmanager
async def receiving(store: Store) -> AsyncIterator[Path]:
    """As Store.receiving, off the event loop: removing what was received may take a while."""
    folder = store.receiving()
    path = await asyncio.to_thread(folder.__enter__)
    try:
        yield path
    except BaseException as error:
        if not await asyncio.to_thread(folder.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(folder.__exit__, None, None, None)
