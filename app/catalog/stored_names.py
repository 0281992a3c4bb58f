"""Everything that a store's names say, read in one go: a start does it while the base is loaded.

Knows the store; knows no base, and so not which reports hold for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.catalog.pointer import Pointer
from app.catalog.store import Json, Store, StoreUnavailable


@dataclass(frozen=True, eq=False)
class StoredNames:
    """pointers: of every name that points somewhere. reports: by version, each once however many
    names point at it. broken: why others cannot be read, by name.
    """

    pointers: list[Pointer]
    reports: dict[str, Json | None]
    broken: dict[str, str]


def read_names(store: Store) -> StoredNames:
    """Blocks. Raises StoreUnavailable where not even the names can be listed."""
    stored = StoredNames([], {}, {})
    for name in store.every_name():
        try:
            pointer = store.look(name)
        except StoreUnavailable as error:
            stored.broken[name] = f"{type(error).__name__}: {error}"
            continue
        if pointer.version is not None:
            stored.pointers.append(pointer)
            if pointer.version not in stored.reports:
                stored.reports[pointer.version] = store.report(pointer.version)
        elif not pointer.revision:
            stored.broken[name] = "what was stored about the name is damaged: PUT it again"
    return stored
