"""Which versions are in memory, within a budget; what is used least recently falls out.

Memory is a cache of the store: whoever holds a Version keeps it alive until its answer has left.
Knows bytes and digests; knows no names, files or HTTP.
"""

from __future__ import annotations

from collections import OrderedDict

from app.catalog.stored_version import StoredVersion


class Residents:
    """budget_bytes: of all versions together; the one put last stays whatever its size."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._found: OrderedDict[str, StoredVersion] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._found

    def __len__(self) -> int:
        return len(self._found)

    def use(self, digest: str) -> StoredVersion | None:
        """The version for a request, if it is in memory; counted."""
        found = self.get(digest)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def get(self, digest: str) -> StoredVersion | None:
        """The version if it is in memory; it is then the most recently used."""
        if digest in self._found:
            self._found.move_to_end(digest)
        return self._found.get(digest)

    def put(self, version: StoredVersion) -> None:
        """Hold it; others fall out as the budget needs."""
        self.drop(version.digest)
        self._found[version.digest] = version
        self.bytes += version.adapter.resident_bytes
        while self.bytes > self.budget_bytes and len(self._found) > 1:
            self.drop(next(iter(self._found)))

    def drop(self, digest: str) -> None:
        found = self._found.pop(digest, None)
        if found is not None:
            self.bytes -= found.adapter.resident_bytes

    def has_room(self, size: int) -> bool:
        return self.bytes + size <= self.budget_bytes
