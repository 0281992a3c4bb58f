"""A change of a name that another server moves at the same time is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from app.catalog.store import StaleRevision, StoreUnavailable

T = TypeVar("T")
MOST_TRIES, TRY_AGAIN_S = 32, 0.01  # against so many that move one name at once, longer each time


async def until_it_wins(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again where another server has moved the name meanwhile. Raises StoreUnavailable where
    that goes on and on.
    """
    for tries in range(MOST_TRIES):
        with suppress(StaleRevision):
            return await attempt()
        await asyncio.sleep(random.uniform(0, TRY_AGAIN_S * tries))
    raise StoreUnavailable("other servers move this name all the time: try again")
