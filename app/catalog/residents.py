"""Which versions are in memory, within a budget; what is used least recently falls out.

Memory is a cache of the store: whoever holds a version keeps it alive until its answer has left.
Knows bytes and digests; knows no names, files or HTTP. Touched from the event loop only, and so
without a lock: other threads read its counts alone.
"""

from __future__ import annotations

from collections import OrderedDict

from app.catalog.stored_version import StoredVersion


class Residents:
    """budget_bytes: of all versions together; the one put last stays whatever its size.

    bytes: of those that are in memory. Since the start: hits, misses of requests; evictions,
    versions that fell out for want of room.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._versions: OrderedDict[str, StoredVersion] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._versions

    def __len__(self) -> int:
        return len(self._versions)

    def latest(self, most: int) -> list[str]:
        """The digests that were used last, those first. From any thread."""
        return list(self._versions)[::-1][:most]

    def use(self, digest: str) -> StoredVersion | None:
        """The version for a request, if it is in memory; counted."""
        version = self.get(digest)
        if version is None:
            self.misses += 1
        else:
            self.hits += 1
        return version

    def get(self, digest: str) -> StoredVersion | None:
        """The version if it is in memory; it is then the most recently used."""
        if digest in self._versions:
            self._versions.move_to_end(digest)
        return self._versions.get(digest)

    def put(self, version: StoredVersion) -> None:
        """Hold it; others fall out as the budget needs."""
        self.drop(version.digest)
        self._versions[version.digest] = version
        self.bytes += version.adapter.resident_bytes
        while self.bytes > self.budget_bytes and len(self._versions) > 1:
            self.drop(next(iter(self._versions)))
            self.evictions += 1

    def drop(self, digest: str) -> None:
        """Let it go, if it is in memory."""
        version = self._versions.pop(digest, None)
        if version is not None:
            self.bytes -= version.adapter.resident_bytes

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more fit without another falling out."""
        return self.bytes + size <= self.budget_bytes
