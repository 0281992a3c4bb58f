"""A page of a shared store's names, of which a server does not know all.

What is not known is read and not kept: to list 100,000 names costs no memory. Knows the store and
the names that are served; knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.catalog.fetch import Fetcher
from app.catalog.registry import Name
from app.catalog.store import NameUnreadable

# Of their own: a list delays neither moves nor the names that are asked for.
LISTERS = ThreadPoolExecutor(8, "list")


async def page(
    fetcher: Fetcher, after: str, most: int, wanted: Callable[[str], bool]
) -> tuple[list[Name], str | None]:
    """Of the next `most` names behind `after` those that are wanted, and the last of all that were
    looked at; None: there are no more.

    Names whose version this base has never measured are left out. Raises StoreUnavailable.
    """
    behind = await fetcher.ask(fetcher.store.names, after)
    names = [name for name in behind[:most] if wanted(name)]
    served = await asyncio.gather(*(_shown(fetcher, name) for name in names))
    last = behind[most - 1] if len(behind) > most else None
    return [name for name in served if name is not None], last


async def _shown(fetcher: Fetcher, name: str) -> Name | None:
    known = fetcher.registry.names.get(name)
    if known is not None:
        return known
    return await asyncio.get_running_loop().run_in_executor(LISTERS, _read, fetcher, name)


def _read(fetcher: Fetcher, name: str) -> Name | None:
    """Blocks. None: there is none, or none that can be shown. Raises StoreUnavailable."""
    try:
        pointer = fetcher.store.look(name)
    except NameUnreadable:
        return None
    report = fetcher.stored_report(pointer.version) if pointer.version else None
    return Name(pointer, report) if report else None
