"""A name's version, from memory or from the store: at start, while serving, and after it fell out.

Each is verified by its hash and read as an upload is; what was measured on the same base before need
not be measured again. Knows the store, the registry and the loader; knows no HTTP and changes no name
but those that can no longer be served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.adapters.config.tasks import HeadUntold
from app.adapters.refusals import AdapterRejected
from app.adapters.report import Report
from app.catalog.disk import StoreFull, StoreUnavailable, disk_errors
from app.catalog.load import Loader, from_store, load_version, to_store
from app.catalog.local_store import Store, content_version
from app.catalog.pointer import Pointer
from app.catalog.registry import Name, Registry, UnknownAdapter
from app.catalog.stored_version import StoredVersion

log = logging.getLogger(__name__)
EAGER_S = 3.0  # of loading before the port opens; what is left then is loaded while serving


@dataclass(eq=False)
class Fetcher:
    """Versions on their way into memory, each once however many ask for it."""

    store: Store
    registry: Registry
    loader: Loader
    _loading: dict[str, asyncio.Task[StoredVersion]] = field(default_factory=dict)
    _certified: set[str] = field(default_factory=set)

    async def load_all(self) -> None:
        """At start: every name of the store; what a crash left beside them is removed.

        What was measured on this base before is known at once; versions are loaded for EAGER_S, the
        rest when first asked for or by warm(), and verified then.
        """
        started = time.monotonic()
        for pointer, report in await asyncio.to_thread(self._stored):
            if pointer.version is None:
                continue
            if report is None:
                await self._load_name(pointer)
            else:
                self._point(pointer, report)
        await asyncio.to_thread(self.registry.nearest.settle)
        for found in list(self.registry.names.values()):
            if time.monotonic() - started > EAGER_S:
                break
            await self._warm_one(found)

    def _stored(self) -> list[tuple[Pointer, Report | None]]:
        """Every name with what is known of its version. Damaged names are noted as broken."""
        found = []
        for name in self.store.names():
            try:
                pointer = self.store.pointer(name)
            except StoreUnavailable as error:
                self.registry.broken[name] = reason_of(error)
                continue
            if pointer is None:
                self.registry.broken[name] = (
                    "what was stored about the name is damaged: PUT it again"
                )
            else:
                found.append((pointer, self._known(pointer.version)))
        self.store.sweep()
        return found

    def _known(self, digest: str | None) -> Report | None:
        """The version's stored report, where it holds for this base. Blocks."""
        stored = self.store.read_report(digest) if digest else None
        report = from_store(stored, self.loader.engine.encoder)
        return report if report is not None and report.version == digest else None

    async def warm(self) -> None:
        """Load what the start left while there is room, and look at the files of what has none; no
        faster than half of the time.
        """
        for found in list(self.registry.names.values()):
            started = time.monotonic()
            await self._warm_one(found)
            await asyncio.sleep(time.monotonic() - started)

    async def _warm_one(self, found: Name) -> None:
        residents = self.registry.residents
        if self.registry.names.get(found.name) is not found or found.digest in residents:
            return
        with contextlib.suppress(UnknownAdapter, StoreUnavailable):
            if residents.has_room(found.report.resident_bytes):
                await self.ready(found)
            elif not await asyncio.to_thread(self._whole, found.digest):
                await self._load_name(await self.pointer(found.name))

    async def ready(self, found: Name) -> StoredVersion:
        """The name's version, from memory or mapped back from the store; others go on meanwhile.

        Raises UnknownAdapter where it cannot be served, with the reason; StoreUnavailable.
        """
        version = self.registry.ready(found)
        if version is not None:
            return version
        try:
            return await self.load_stored(found.digest)
        except StoreUnavailable:  # for now
            raise
        except Exception:  # the name is looked at anew: it may have moved, else it is broken
            pointer = await self.pointer(found.name)
        if pointer.version == found.digest and self.registry.names.get(found.name) is found:
            await self._load_name(pointer)
        current = self.registry.get(found.name)
        return self.registry.ready(current) or await self.load_stored(current.digest)

    async def _load_name(self, pointer: Pointer) -> None:
        """Serve the name by its version, or note why not.

        Whoever moves the name meanwhile is right.
        """
        before = self.registry.names.get(pointer.name)
        try:
            version = await self.load_stored(pointer.version or "")
        except Exception as error:  # one adapter must not keep the others from being served
            if self.registry.names.get(pointer.name) is not before:
                return
            self.registry.remove(pointer.name)
            self.registry.broken[pointer.name] = reason_of(error)
            log.error("adapter %s is stored but not served: %s", pointer.name, reason_of(error))
            return
        if self.registry.names.get(pointer.name) is not before:
            return
        self.serve(pointer, version)

    async def load_stored(self, digest: str) -> StoredVersion:
        """A stored version, from memory where it is resident; loaded once for all who ask meanwhile.

        Raises AdapterRejected, StoreUnavailable.
        """
        resident = self.registry.residents.get(digest)
        if resident is not None:
            return resident
        loading = self._loading.get(digest)
        if loading is None:
            loading = asyncio.create_task(self._load_stored(digest))
            self._loading[digest] = loading
            loading.add_done_callback(lambda _: self._loading.pop(digest, None))
        return await asyncio.shield(loading)

    async def _load_stored(self, digest: str) -> StoredVersion:
        folder, encoder = self.store.version_folder(digest), self.loader.engine.encoder
        await self.check_files(digest)
        said = await asyncio.to_thread(self.store.read_options, digest)
        known = await asyncio.to_thread(self._known, digest)
        load = partial(
            load_version,
            self.loader,
            folder,
            digest,
            allow_noop=True,
            known=known,
            certify=digest not in self._certified,
        )
        try:
            version = await load(said)
        except HeadUntold:  # stored before such a head was refused: what it was, it stays
            task = await asyncio.to_thread(self._task_before, digest)
            if task is None:
                raise
            version = await load({**said, "task": task})
        if known is None:
            report = to_store(version.report, encoder)
            with contextlib.suppress(StoreFull, StoreUnavailable):
                await asyncio.to_thread(self.store.write_report, digest, report)
        self._certified.add(digest)
        self.registry.residents.put(version)
        self.registry.keep_old(digest)
        return version

    def _task_before(self, digest: str) -> str | None:
        """What an earlier server read the version as, whatever its report's format. Blocks."""
        report = (self.store.read_report(digest) or {}).get("report")
        task = report.get("task") if isinstance(report, dict) else None
        return task if task in ("classify", "tokens") else None

    async def check_files(self, digest: str) -> None:
        """Raises AdapterRejected where the stored files are not those of the upload; they are put aside."""
        if await asyncio.to_thread(self._whole, digest):
            return
        aside = await asyncio.to_thread(self._set_aside, digest)
        raise AdapterRejected(
            "its files on disk are lost, or are not the ones that were uploaded"
            + (f"; they are put aside in {aside}" if aside else "")
            + ": PUT it again"
        )

    def _whole(self, digest: str) -> bool:
        """Whether the stored files are those of the upload. Blocks. Raises StoreUnavailable."""
        try:
            with disk_errors(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                said = self.store.read_options(digest)
                return content_version(self.store.version_folder(digest), said) == digest
        except (ValueError, TypeError, RecursionError):
            pass  # its options are no JSON any more
        return False

    def _set_aside(self, digest: str) -> Path | None:
        with contextlib.suppress(StoreFull, StoreUnavailable):
            aside = self.store.set_aside(digest)
            if aside is not None:
                log.error("version %s is damaged: put aside in %s", digest, aside)
            return aside
        return None

    def serve(self, pointer: Pointer, version: StoredVersion) -> Name:
        """The name answers with the version from now on."""
        self.registry.residents.put(self.registry.residents.get(version.digest) or version)
        return self._point(pointer, version.report)

    def repoint(self, pointer: Pointer, served: Name) -> Name:
        """What the name is served by stays; what is known beside it has changed."""
        return self._point(pointer, served.report)

    def _point(self, pointer: Pointer, report: Report) -> Name:
        name = Name(pointer, report)
        self.registry.point(name)
        return name

    async def pointer(self, name: str) -> Pointer:
        """Where the name points, whether it can be served or not. Raises UnknownAdapter."""
        pointer = await asyncio.to_thread(self.store.pointer, name)
        if pointer is None or pointer.version is None:
            self.registry.get(name)
            raise UnknownAdapter(name, [], f"what was stored about {name} is damaged: PUT it again")
        return pointer


def reason_of(error: Exception) -> str:
    """Why something cannot be served, in one line."""
    if isinstance(error, AdapterRejected):
        named = [f"{p.tensor or ''} {p.reason}".strip() for p in error.problems[:5]]
        return "; ".join([error.message, *named])
    return f"{type(error).__name__}: {error}"
