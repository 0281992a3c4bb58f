"""What a store's names say, read in one go: a start does it while the base is loaded.

Knows the store; knows no base, and so not which reports hold for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from app.catalog.pointer import Pointer
from app.catalog.store import Json, Store, StoreUnavailable

WHOLE = 1_000  # names of a shared store that are all known to each server; of more, those asked for
READERS = 32  # names that are read at the same time, where each reading is a request


@dataclass(eq=False)
class StoredNames:
    """pointers: of every name that points somewhere. reports: by version, each once however many
    names point at it. broken: why others cannot be read, by name.

    epoch: the store's, before they were read. whole: whether these are all names. unreachable: why
    a shared store could not be read at all.
    """

    pointers: list[Pointer] = field(default_factory=list)
    reports: dict[str, Json | None] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    epoch: str = ""
    whole: bool = True
    unreachable: str | None = None


def read_names(store: Store) -> StoredNames:
    """Of a shared store that has more than WHOLE names, none. Blocks.

    Raises StoreUnavailable where not even the names of this server's own can be listed.
    """
    if not store.shared:
        return _read(store, store.every_name())
    try:
        epoch, page = store.epoch(), store.names()
        stored = _read(store, page if len(page) <= WHOLE else [])
    except StoreUnavailable as error:
        return StoredNames(whole=False, unreachable=str(error))
    stored.epoch, stored.whole = epoch, len(page) <= WHOLE
    return stored


def _read(store: Store, names: Iterator[str] | list[str]) -> StoredNames:
    """Each pointer, then each report once; side by side where each reading is a request."""
    stored = StoredNames()
    with ThreadPoolExecutor(READERS if store.shared else 1) as pool:
        for name, pointer in pool.map(lambda name: (name, _look(store, name)), names):
            if isinstance(pointer, str):
                stored.broken[name] = pointer
            elif pointer.version is not None:
                stored.pointers.append(pointer)
            elif not pointer.revision:
                stored.broken[name] = "what was stored about the name is damaged: PUT it again"
        versions = list(dict.fromkeys(pointer.version or "" for pointer in stored.pointers))
        stored.reports = dict(zip(versions, pool.map(store.report, versions), strict=True))
    return stored


def _look(store: Store, name: str) -> Pointer | str:
    """Where the name points, or why that cannot be told."""
    try:
        return store.look(name)
    except StoreUnavailable as error:
        return f"{type(error).__name__}: {error}"
