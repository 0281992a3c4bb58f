"""A name's version, from memory or from the store: at start, while serving, and after it fell out.

Each is verified by its hash and read as an upload is; what was measured on the same base before
need not be measured again. Knows the store, the registry and the loader; knows no HTTP and changes
no name but those that can no longer be served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.adapters.config.tasks import HeadUntold
from app.adapters.refusals import AdapterRejected
from app.adapters.report import Report
from app.catalog.load import Loader, from_store, load_version, to_store
from app.catalog.pointer import Pointer
from app.catalog.registry import (
    Name,
    Registry,
    UnknownAdapter,
    UnknownVersion,
    find_version,
)
from app.catalog.store import Json, Store, StoreFull, StoreUnavailable, VersionDamaged
from app.catalog.stored_names import READERS, StoredNames
from app.catalog.stored_version import StoredVersion

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
MOVED = 8  # versions that come at the same time for names that are in use and have moved
EAGER_S = 1.5  # before the port opens; the rest is loaded while serving


@dataclass(eq=False)
class Fetcher:
    """Versions on their way into memory, each once however many ask for it.

    Its own state is touched from the event loop only, and so needs no lock; what blocks runs in
    threads and touches the store alone.
    """

    store: Store
    registry: Registry
    loader: Loader
    # Threads apart: versions that take long to come hold up nothing else, and moved ones no others.
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(READERS, "store")
    )
    _files: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "files"))
    _moved: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MOVED, "moved"))
    _loading: dict[str, asyncio.Task[StoredVersion]] = field(default_factory=dict)
    _certified: set[str] = field(default_factory=set)

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The store, in a thread of its own: one that hangs holds up nothing else. Raises what the
        call does.
        """
        asked = partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.threads, asked)

    async def load_all(self, stored: StoredNames) -> None:
        """At start: every name of the store.

        What was measured on this base before is known at once; versions are loaded for EAGER_S, the
        rest when first asked for or by warm(), and verified then.
        """
        started = time.monotonic()
        self.registry.broken.update(stored.broken)
        reports = await self.ask(self._holding, stored.reports)
        for pointer in stored.pointers:
            report = reports.get(pointer.version or "")
            if report is None:
                await self._load_at_start(pointer)
            else:
                self.point(pointer, report)
        await asyncio.to_thread(self.registry.nearest.settle)
        for name in [] if self.store.shared else list(self.registry.names.values()):
            if time.monotonic() - started > EAGER_S:
                break
            await self._warm_one(name)

    async def _load_at_start(self, pointer: Pointer) -> None:
        """One name that cannot be loaded must not keep the others from being served."""
        try:
            await self.load_name(pointer)
        except StoreUnavailable as error:
            self.registry.broken[pointer.name] = reason_of(error)

    def _holding(self, stored: Mapping[str, Json | None]) -> dict[str, Report | None]:
        """The stored reports that hold for this base, by version. Blocks."""
        return {digest: self._report(digest, raw) for digest, raw in stored.items()}

    def stored_report(self, digest: str) -> Report | None:
        """The version's report in the store, where it holds for this base. Blocks."""
        return self._report(digest, self.store.report(digest))

    def _report(self, digest: str, stored: Json | None) -> Report | None:
        """The version's stored report, where it holds for this base."""
        report = from_store(stored, self.loader.engine.encoder)
        return report if report is not None and report.version == digest else None

    async def warm(self) -> None:
        """Load what the start has not, while there is room, and verify the files of what has none.

        No faster than half of the time.
        """
        for name in list(self.registry.names.values()):
            started = time.monotonic()
            await self._warm_one(name)
            await asyncio.sleep(time.monotonic() - started)

    async def _warm_one(self, name: Name) -> None:
        residents = self.registry.residents
        if self.registry.names.get(name.name) is not name or name.digest in residents:
            return
        with contextlib.suppress(UnknownAdapter, StoreUnavailable):
            if residents.has_room(name.report.resident_bytes):
                await self.ready(name)
                return
            try:
                await self.ask(self.store.folder, name.digest)
            except VersionDamaged:
                await self.load_name(await self.pointer(name.name))

    async def ready(self, name: Name) -> StoredVersion:
        """The name's version, from memory or mapped back from the store; others go on meanwhile.

        Raises UnknownAdapter where it cannot be served, with the reason; StoreUnavailable.
        """
        version = self.registry.ready(name)
        if version is not None:
            return version
        try:
            return await self.load_stored(name.digest)
        except StoreUnavailable:  # for now
            raise
        except Exception:  # the name is looked at anew: it may have moved, else it is broken
            pointer = await self.pointer(name.name)
        if pointer.version == name.digest and self.registry.names.get(name.name) is name:
            await self.load_name(pointer)
        current = self.registry.get(name.name)
        return self.registry.ready(current) or await self.load_stored(current.digest)

    async def version(self, name: Name, prefix: str | None) -> StoredVersion:
        """The name's current version, or the one of its history that prefix begins.

        Raises UnknownAdapter, UnknownVersion, StoreUnavailable.
        """
        if prefix is None:
            return await self.ready(name)
        digest = find_version(name.name, name.pointer.history, prefix)
        if digest == name.digest:
            return await self.ready(name)
        resident = self.registry.residents.use(digest)
        try:
            return resident or await self.load_stored(digest)
        except (AdapterRejected, OSError):  # deleted meanwhile, or damaged on disk
            raise UnknownVersion(
                f"{name.name} has version {digest}, but it cannot be loaded"
            ) from None

    async def load_name(self, pointer: Pointer) -> None:
        """Serve the name by its version, or note why not.

        Whoever moves the name meanwhile is right. Raises StoreUnavailable.
        """
        before = self.registry.names.get(pointer.name)
        try:
            version = await self.load_stored(pointer.version or "")
        except StoreUnavailable:  # for now
            raise
        except Exception as error:  # one adapter must not keep the others from being served
            if self.registry.names.get(pointer.name) is not before:
                return
            self.registry.remove(pointer.name)
            self.registry.broken[pointer.name] = reason_of(error)
            why = {"name": pointer.name, "reason": reason_of(error)}
            log.error("adapter %(name)s is stored but not served: %(reason)s", why)
            return
        if self.registry.names.get(pointer.name) is before:
            self.serve(pointer, version)

    async def load_stored(self, digest: str, *, moved: bool = False) -> StoredVersion:
        """A stored version, from memory where it is resident.

        It is loaded once for all who ask meanwhile. moved: for a name whose old version is served
        until it has come. Raises AdapterRejected, StoreUnavailable.
        """
        resident = self.registry.residents.get(digest)
        if resident is not None:
            return resident
        loading = self._loading.get(digest)
        if loading is None:
            loading = asyncio.create_task(self._load_stored(digest, moved))
            self._loading[digest] = loading
            loading.add_done_callback(lambda _: self._loading.pop(digest, None))
        return await asyncio.shield(loading)

    async def _load_stored(self, digest: str, moved: bool) -> StoredVersion:
        folder, options = await self.files(digest, moved=moved)
        report = await self.ask(self.stored_report, digest)
        certify = digest not in self._certified
        load = partial(
            load_version,
            self.loader,
            folder,
            digest,
            allow_noop=True,
            report=report,
            certify=certify,
        )
        try:
            version = await load(options)
        except HeadUntold:  # stored before such a head was refused: what it was, it stays
            task = await self.ask(self._former_task, digest)
            if task is None:
                raise
            version = await load({**options, "task": task})
        except FileNotFoundError:  # a cache's; a folder's are looked after where they are missed
            if not self.store.shared:
                raise
            raise StoreUnavailable("its files went from the cache meanwhile: try again") from None
        if report is None:
            measured = to_store(version.report, self.loader.engine.encoder)
            with contextlib.suppress(StoreFull, StoreUnavailable):
                await self.ask(self.store.write_report, digest, measured)
        self._certified.add(digest)
        self.registry.residents.put(version)
        self.registry.keep_old(digest)
        return version

    def _former_task(self, digest: str) -> str | None:
        """What an earlier server read the version as, whatever its report's format. Blocks."""
        report = (self.store.report(digest) or {}).get("report")
        task = report.get("task") if isinstance(report, dict) else None
        return task if task in ("classify", "tokens") else None

    async def files(self, digest: str, *, moved: bool = False) -> tuple[Path, Json]:
        """The folder of the version's files, verified, and its query's options. moved: load_stored.

        Files that are not those of the upload are set aside.
        Raises AdapterRejected for those; StoreUnavailable.
        """
        threads, loop = self._moved if moved else self._files, asyncio.get_running_loop()
        try:
            folder = await loop.run_in_executor(threads, self.store.folder, digest)
            return folder, await self.ask(self.store.options, digest)
        except VersionDamaged:
            aside = None
            with contextlib.suppress(StoreFull, StoreUnavailable):
                aside = await self.ask(self.store.set_aside, digest)
        raise AdapterRejected(
            "its files on disk are lost, or are not the ones that were uploaded"
            + (f"; they are put aside in {aside}" if aside else "")
            + ": PUT it again"
        )

    def serve(self, pointer: Pointer, version: StoredVersion, *, moved: bool = False) -> Name:
        """The name answers with the version from now on. moved: as point's."""
        self.registry.residents.put(self.registry.residents.get(version.digest) or version)
        return self.point(pointer, version.report, moved=moved)

    def point(self, pointer: Pointer, report: Report, *, moved: bool = False) -> Name:
        """The name is what the pointer says from now on.

        report: of the version that it points at. moved: by this server; where another has moved it
        since, and that is known already, it stays.
        """
        name, now = Name(pointer, report), self.registry.names.get(pointer.name)
        if not (moved and now and now.pointer.revision > pointer.revision):
            self.registry.point(name)
        return name

    async def pointer(self, name: str) -> Pointer:
        """Where the name points, whether it can be served or not. Raises UnknownAdapter."""
        pointer = await self.ask(self.store.look, name)
        if pointer.version is None:
            if pointer.revision:  # deleted, maybe by another server
                self.registry.remove(name)
            self.registry.get(name)
            raise UnknownAdapter(name, [], f"what was stored about {name} is damaged: PUT it again")
        return pointer


def reason_of(error: Exception) -> str:
    """Why something cannot be served, in one line."""
    if isinstance(error, AdapterRejected):
        problems = [f"{p.tensor or ''} {p.reason}".strip() for p in error.problems[:5]]
        return "; ".join([error.message, *problems])
    return f"{type(error).__name__}: {error}"
