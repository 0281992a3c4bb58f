"""Opens the store that a server works with; another kind of store is chosen here.

Knows which stores there are; knows nothing of what they hold.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from app.catalog.disk import alone
from app.catalog.local_store import LocalStore
from app.catalog.store import Store, StoreUnusable

SCHEME = re.compile(r"[a-z][a-z0-9]+:/", re.IGNORECASE)  # also of who has forgotten a slash
BUCKET = re.compile(r"(s3a?|gs|az|azure|adl|abfss?)://", re.IGNORECASE)


@contextmanager
def open_store(place: str, cache_dir: Path, cache_bytes: int) -> Iterator[Store]:
    """The store in a folder, which no other server opens meanwhile, or in a bucket, which any may.

    A folder's is read-only where it cannot be written. cache_dir, cache_bytes: of this machine's
    disk, for a bucket's. Raises StoreUnusable.
    """
    if BUCKET.match(place):
        yield _in_a_bucket(place, cache_dir, cache_bytes)
    elif SCHEME.match(place):
        raise StoreUnusable(f"STORE={place} is no folder and no s3://, gs:// or az:// bucket")
    else:
        with open_folder(Path(place)) as store:
            yield store


@contextmanager
def open_folder(place: Path) -> Iterator[Store]:
    """The store in a folder. Raises StoreUnusable."""
    with alone(place) as may_write:
        yield LocalStore(place, may_write=may_write)


def _in_a_bucket(url: str, cache_dir: Path, cache_bytes: int) -> Store:
    try:
        from app.catalog.bucket import Bucket
        from app.catalog.object_store import ObjectStore
    except ImportError as error:
        raise StoreUnusable(
            f"STORE={url} needs obstore ({error}): pip install 'bert-lora-server[object]'"
        ) from None
    return ObjectStore(Bucket(url), cache_dir, cache_bytes)


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
