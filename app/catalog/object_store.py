"""The store in a bucket, for the servers of many machines.

    names/      where each name points: object_names.py
    epoch       which names have moved lately: move_log.py
    versions/, files/, reports/    object_versions.py
    audit/      who changed what: object_audit.py
    damaged/    pointers that no server has written
    collector   which server collects now: object_collecting.py

Objects are written whole or not at all, and every one that several may write is replaced by
compare-and-swap. Versions come through a cache on this machine's disk, checked by their hash.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.catalog.bucket import Bucket
from app.catalog.disk_cache import DiskCache, cache_errors, write_json
from app.catalog.move_log import MoveLog
from app.catalog.object_audit import ObjectAudit
from app.catalog.object_collecting import ObjectCollector
from app.catalog.object_names import ObjectNames
from app.catalog.object_versions import ObjectVersions
from app.catalog.pointer import Pointer
from app.catalog.store import (
    CacheUnusable,
    ChangeUnsure,
    Json,
    Moves,
    Store,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
    VersionDamaged,
    content_version,
)
from app.catalog.workspace import Workspace

log = logging.getLogger(__name__)
OPTIONS, REPORT = "options.json", "report.json"
FLUSHED = 8  # waiting records of the audit, each time: nobody waits for more
LATE_S = (3.0, 10.0, 30.0)  # after which a move that may be made late is told again
SAFE_S = 20.0  # a commit this old is renewed before a name moves to it: well within any grace


class ObjectStore(Store):
    """The contract's promises by compare-and-swap. Several threads may use it."""

    shared = True

    def __init__(self, bucket: Bucket, cache_dir: Path, cache_bytes: int) -> None:
        """Asks the bucket for nothing. Raises StoreUnusable for a cache that cannot be made."""
        self._bucket = bucket
        try:
            self._workspace = Workspace(cache_dir, may_write=True, errors=cache_errors)
            self._cache = DiskCache(cache_dir, cache_bytes)
        except OSError as error:
            raise StoreUnusable(f"CACHE_DIR={cache_dir} cannot be used: {error}") from None
        self._names = ObjectNames(bucket)
        self._versions = ObjectVersions(bucket)
        self._audit = ObjectAudit(bucket)
        self._log = MoveLog(bucket)
        self._collector = ObjectCollector(
            bucket, self._names, self._versions, self._audit, self._cache.drop
        )
        self._committed: dict[str, float] = {}
        self._damaged: set[str] = set()

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """As Store.receiving, in the cache's folder."""
        try:
            with self._workspace.receiving() as folder:
                yield folder
        except StoreFull:  # for who tries again
            self._cache.shrink()
            raise

    def commit(self, folder: Path, version: str, options: Json, report: Json) -> None:
        """As Store.commit."""
        started = time.monotonic()
        if not (self._is_whole(version) and self._versions.touch(version)):
            self._versions.upload(folder, version, options, report)
            with cache_errors():
                write_json(folder / OPTIONS, options)
                write_json(folder / REPORT, report)
                self._cache.drop(version)
                self._cache.put(version, folder)
        self._damaged.discard(version)
        lately = list(self._committed.items())  # other threads may add to it
        self._committed = {v: t for v, t in lately if started - t < SAFE_S}
        self._committed[version] = started

    def _is_whole(self, version: str) -> bool:
        """In the bucket, whatever is in the cache."""
        with self.receiving() as folder:
            try:
                self._versions.download(version, folder)
            except VersionDamaged:
                return False
        return True

    def folder(self, version: str) -> Path:
        """As Store.folder, from the cache or the bucket."""
        cached = self._cached(version)
        if cached is not None:
            return cached
        for _ in range(2):  # receiving() makes room where there is none
            try:
                return self._brought(version)
            except StoreFull as error:
                full = error
        raise CacheUnusable(str(full)) from None

    def _brought(self, version: str) -> Path:
        with self.receiving() as tmp:
            folder = tmp / version
            folder.mkdir()
            options = self._download(version, folder)
            write_json(folder / OPTIONS, options)
            return self._cache.put(version, folder)

    def _download(self, version: str, folder: Path) -> Json:
        """Twice where what came is not what was committed: it may have changed on its way."""
        try:
            return self._versions.download(version, folder)
        except VersionDamaged:
            return self._versions.download(version, folder)

    def _cached(self, version: str) -> Path | None:
        """The version's folder in the cache, if its files are the right ones."""
        try:
            folder = self._cache.get(version)
            if folder is None:
                return None
            if content_version(folder, self._cache.read(version, OPTIONS) or {}) == version:
                return folder
        except OSError:  # whatever stands there in the place of a file
            pass
        self._cache.drop(version)
        return None

    def options(self, version: str) -> Json:
        """As Store.options."""
        options = self._cache.read(version, OPTIONS)
        return self._versions.options(version) if options is None else options

    def report(self, version: str) -> Json | None:
        """As Store.report, from the cache or the bucket."""
        report = self._cache.read(version, REPORT)
        if report is None:
            report = self._versions.report(version)
            if report is not None:
                self._cache.write(version, REPORT, report)
        return report

    def write_report(self, version: str, report: Json) -> None:
        """As Store.write_report."""
        self._cache.write(version, REPORT, report)
        self._versions.write_report(version, report)

    def set_aside(self, version: str) -> str | None:
        """As Store.set_aside. It stays where it is: what one server reads badly others may read
        well, and a commit puts other files in its place.
        """
        if self._is_whole(version):
            return None
        place = self._versions.place(version)
        if place is not None:
            self._damaged.add(version)
            log.error(
                "version %(version)s is damaged: %(place)s", {"version": version, "place": place}
            )
        return place

    def set_aside_versions(self) -> list[str]:
        """As Store.set_aside_versions, of what this server has found."""
        return sorted(self._damaged)

    def names(self, after: str = "") -> list[str]:
        """As Store.names."""
        return self._names.page(after)

    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        """As Store.look."""
        return self._names.look(name, seen)

    def move(self, seen: Pointer, after: Pointer) -> Pointer:
        """As Store.move."""
        self._renew(after.versions - seen.versions)
        try:
            pointer = self._names.move(seen, after)
        except ChangeUnsure:
            for seconds in LATE_S:
                again = threading.Timer(seconds, self._log.write, [after.name])
                again.daemon = True
                again.start()
            raise
        finally:
            self._log.write(after.name)  # also of a move that may have been made
        try:
            self._renew(after.versions - seen.versions)  # where the move has taken long
        except StoreUnavailable as error:
            raise ChangeUnsure(str(error)) from None
        return pointer

    def _renew(self, versions: set[str]) -> None:
        """Commit those again whose commit is no longer well within any grace."""
        for version in versions:
            now = time.monotonic()
            if now - self._committed.get(version, -math.inf) > SAFE_S:
                if not self._versions.touch(version):
                    raise StoreUnavailable(f"version {version} is there no more: PUT it again")
                self._committed[version] = now

    def epoch(self) -> str:
        """As Store.epoch."""
        return self._log.since("").epoch

    def moves(self, since: str) -> Moves:
        """As Store.moves. It answers: what waits for that is written."""
        moves = self._log.since(since)
        self._audit.flush_aside(FLUSHED)
        return moves

    def tombstones(self) -> int:
        """As Store.tombstones."""
        return self._names.tombstones()

    def collect(self, older_than_s: float) -> bool:
        """As Store.collect."""
        return self._collector.collect(older_than_s)

    def append_audit(self, record: Json) -> None:
        """As Store.append_audit."""
        self._audit.append(record)

    def read_audit(self, before: str, most: int, wanted: Callable[[Json], bool]) -> list[Json]:
        """As Store.read_audit."""
        return self._audit.read(before, most, wanted)
