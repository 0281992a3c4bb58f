"""The life of adapters: PUT, the watched folder and start-up alike; delete, rollback, merge.

receive -> unpack -> load (load.py) -> commit -> point. One change at a time; requests in flight
never wait for one. Knows the store, the registry and the engine; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from app.adapters.archive import unpack
from app.adapters.files import copy_adapter, looks_like_adapter
from app.adapters.recipe import Options
from app.adapters.registry import (
    Name,
    Registry,
    UnknownAdapter,
    find_version,
    version_before,
)
from app.adapters.residents import Version
from app.adapters.store import (
    Pointer,
    Store,
    StoreFull,
    content_version,
    valid_name,
)
from app.adapters.upload import AdapterRejected
from app.engine.export import export
from app.engine.golden import CertificateFailed
from app.engine.load import Loader, from_store, load_version, said_of, to_store
from app.model.lora import merge_lora, merged_bytes

log = logging.getLogger(__name__)
EAGER_S = 3.0  # of loading before the port opens; what is left then is loaded while serving


class PreconditionFailed(Exception):
    """If-Match or If-None-Match does not hold."""


class MergeMemoryFull(Exception):
    """The merged copy would go over MERGE_MEMORY_BYTES."""


@dataclass(frozen=True, eq=False)
class Installed:
    """What a PUT did. name: None after a dry run, which changes nothing."""

    report: dict[str, Any]
    name: Name | None
    created: bool = False
    unchanged: bool = False


Precondition = Callable[[str | None], None]  # gets the current version; raises PreconditionFailed


def _always(_: str | None) -> None:
    """No precondition."""


@dataclass(frozen=True)
class How:
    """What a PUT asks for beside the files. merge: whether traffic may merge it; None: as before."""

    options: Options = field(default_factory=Options)
    allow_noop: bool = False
    merge: Literal["auto", "off"] | None = None
    dry_run: bool = False
    precondition: Precondition = _always


@dataclass(eq=False)
class Installer:
    """Sizes in bytes."""

    store: Store
    registry: Registry
    loader: Loader
    max_adapter_bytes: int
    merge_memory_bytes: int
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _loading: dict[str, asyncio.Task[Version]] = field(default_factory=dict)
    _certified: set[str] = field(default_factory=set)

    async def install_body(self, name: str, body: Path, content_type: str, how: How) -> Installed:
        """An uploaded body becomes the name's version.

        Raises AdapterRejected, UploadTooLarge, UnsupportedMedia, PreconditionFailed, StoreFull.
        """
        folder = body.parent / "adapter"
        folder.mkdir()
        left = await asyncio.to_thread(unpack, body, content_type, folder, self.max_adapter_bytes)
        installed = await self._install(name, folder, None, how)
        left_aside = [f"{file!r}: not part of an adapter, left aside" for file in left]
        warnings = [*installed.report["warnings"], *left_aside]
        return Installed(
            {**installed.report, "warnings": warnings},
            installed.name,
            installed.created,
            installed.unchanged,
        )

    async def install_folder(self, name: str, source: Path) -> Installed | None:
        """A folder of ADAPTERS_DIR becomes the name's version when its content is new; else None.

        Raises AdapterRejected, StoreFull.
        """
        with self.store.receiving() as tmp:
            folder = tmp / "adapter"
            await asyncio.to_thread(copy_adapter, source, folder)
            content = await asyncio.to_thread(content_version, folder, {})
            pointer = await asyncio.to_thread(self.store.pointer, name)
            if pointer is not None and pointer.folder == content:
                return None
            return await self._install(name, folder, content, How())

    async def _install(self, name: str, folder: Path, content: str | None, how: How) -> Installed:
        """content: the folder's hash where it comes from ADAPTERS_DIR."""
        said = said_of(how.options)
        digest = await asyncio.to_thread(content_version, folder, said)
        async with self._changing:
            pointer = await asyncio.to_thread(self.store.pointer, name)
            current = pointer.version if pointer else None
            how.precondition(self._shown(name, current))
            version = await load_version(
                self.loader, folder, digest, said, allow_noop=how.allow_noop
            )
            report = dict(version.report)
            if how.dry_run:
                return Installed(report, None)
            served = self.registry.names.get(name)
            unchanged = served is not None and current == digest == served.digest
            merge = how.merge if pointer is None or how.merge != pointer.merge else None
            if unchanged and content is None and merge is None:
                return Installed(report, served, unchanged=True)
            stored = to_store(report, self.loader.engine.encoder)
            await asyncio.to_thread(self.store.commit, folder, digest, said, stored)
            try:
                moved = await asyncio.to_thread(
                    self.store.point, name, digest, pointer, content, how.merge
                )
            except StoreFull:
                await asyncio.to_thread(self.store.drop_unheld, {digest})
                raise
            return Installed(report, self._serve(moved, version), current is None, unchanged)

    def _serve(self, pointer: Pointer, version: Version) -> Name:
        self.registry.residents.put(self.registry.residents.get(version.digest) or version)
        return self._point(pointer, version.digest, version.report)

    def _point(self, pointer: Pointer, digest: str, report: Mapping[str, Any]) -> Name:
        found = Name(
            pointer.name,
            digest,
            report,
            pointer.created(digest),
            pointer.history,
            pointer.merge,
        )
        self.registry.point(found)
        return found

    async def load_all(self, adapters_dir: Path) -> None:
        """At start: every name of the store, then what is new in ADAPTERS_DIR.

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
                self._point(pointer, pointer.version, report)
        for found in list(self.registry.names.values()):
            if time.monotonic() - started > EAGER_S:
                break
            await self._warm_one(found)
        await self.sync_folder(adapters_dir)

    def _stored(self) -> list[tuple[Pointer, dict[str, Any] | None]]:
        """Every name with what is known of its version. Damaged names are noted as broken."""
        found = []
        for name in self.store.names():
            pointer = self.store.pointer(name)
            if pointer is None:
                self.registry.broken[name] = (
                    "what was stored about the name is damaged: PUT it again"
                )
            else:
                found.append((pointer, self._known(pointer.version)))
        return found

    def _known(self, digest: str | None) -> dict[str, Any] | None:
        """The version's stored report, where it holds for this base. Blocks."""
        stored = self.store.read_report(digest) if digest else None
        return from_store(stored, self.loader.engine.encoder)

    async def warm(self) -> None:
        """Load what the start left, while there is room; no faster than half of the time."""
        for found in list(self.registry.names.values()):
            started = time.monotonic()
            await self._warm_one(found)
            await asyncio.sleep(time.monotonic() - started)

    async def _warm_one(self, found: Name) -> None:
        residents = self.registry.residents
        if self.registry.names.get(found.name) is not found or found.digest in residents:
            return
        if residents.has_room(int(found.report["resident_bytes"])):
            with contextlib.suppress(UnknownAdapter):
                await self.ready(found)

    async def ready(self, found: Name) -> Version:
        """The name's version, from memory or mapped back from the store; others go on meanwhile.

        Raises UnknownAdapter where it cannot be served, with the reason.
        """
        version = self.registry.ready(found)
        if version is not None:
            return version
        try:
            return await self.load_stored(found.digest)
        except Exception:  # the pointer's own way knows what to do: fall back, or call it broken
            pointer = await self.pointer(found.name)
        if pointer.version == found.digest and self.registry.names.get(found.name) is found:
            await self._load_name(pointer)
        current = self.registry.get(found.name)
        return self.registry.ready(current) or await self.load_stored(current.digest)

    async def _load_name(self, pointer: Pointer) -> None:
        """Serve the name by its version, or by the one that it falls back to, or note why not."""
        try:
            version, fallen = await self._load_current(pointer)
        except Exception as error:  # one adapter must not keep the others from being served
            self.registry.remove(pointer.name)
            self.registry.broken[pointer.name] = _reason(error)
            log.error("adapter %s is stored but not served: %s", pointer.name, _reason(error))
            return
        self._serve(pointer, version)
        if fallen is not None:
            self.registry.fallen_back[pointer.name] = fallen

    async def _load_current(self, pointer: Pointer) -> tuple[Version, str | None]:
        """The version that the name points at; where its certificate no longer holds, the latest one
        before it that can be served, and why.

        Raises CertificateFailed where there is none, and as load_stored.
        """
        try:
            return await self.load_stored(pointer.version or ""), None
        except CertificateFailed as failed:
            for earlier in dict.fromkeys(e.version for e in reversed(pointer.history)):
                if earlier == pointer.version:
                    continue
                try:
                    version = await self.load_stored(earlier)
                except (AdapterRejected, OSError, ValueError, KeyError):
                    continue
                why = f"version {pointer.version:.12} is not served, {earlier:.12} is: {_reason(failed)}"
                log.error("adapter %s: %s", pointer.name, why)
                return version, why
            raise

    async def load_stored(self, digest: str) -> Version:
        """A stored version, from memory where it is resident; loaded once for all who ask meanwhile.

        Raises AdapterRejected, OSError.
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

    async def _load_stored(self, digest: str) -> Version:
        folder, encoder = self.store.version_folder(digest), self.loader.engine.encoder
        said = await asyncio.to_thread(self.store.read_options, digest)
        if await asyncio.to_thread(content_version, folder, said) != digest:
            raise AdapterRejected("its files on disk are not the ones that were uploaded")
        known = await asyncio.to_thread(self._known, digest)
        version = await load_version(
            self.loader,
            folder,
            digest,
            said,
            allow_noop=True,
            known=known,
            certify=digest not in self._certified,
        )
        if known is None:
            report = to_store(version.report, encoder)
            await asyncio.to_thread(self.store.write_report, digest, report)
        self._certified.add(digest)
        self.registry.residents.put(version)
        self.registry.keep_old(digest)
        return version

    async def sync_folder(self, adapters_dir: Path) -> None:
        """Serve each folder of ADAPTERS_DIR whose content is new, as if it had been PUT."""
        refused: dict[str, str] = {}
        for source in await asyncio.to_thread(_adapter_folders, adapters_dir):
            name = source.name
            try:
                if not valid_name(name):
                    raise AdapterRejected(f"{name!r} is no adapter name (a-z 0-9 . _ -)")
                installed = await self.install_folder(name, source)
            except Exception as error:  # nor a folder the others
                log.error("folder %s is not served: %s", source, _reason(error))
                refused[name] = _reason(error)
                continue
            if installed is not None:
                log.info("folder %s is served as %s", source, installed.report["version"][:12])
        self.registry.refused = refused

    async def remove(self, name: str, precondition: Precondition) -> None:
        """The name is gone at once; requests in flight finish on their version.

        Raises UnknownAdapter, PreconditionFailed, StoreFull.
        """
        async with self._changing:
            pointer = await asyncio.to_thread(self.store.pointer, name)
            current = pointer.version if pointer else None
            if current is None and name not in self.registry.broken:
                self.registry.get(name)
            precondition(self._shown(name, current))
            if pointer is not None:
                await asyncio.to_thread(self.store.point, name, None, pointer)
            self.registry.remove(name)

    async def files(self, name: str) -> bytes:
        """A tar of the folder of the version that is served. Raises UnknownAdapter, OSError."""
        version = await self.ready(self.registry.get(name))
        folder, encoder = self.store.version_folder(version.digest), self.loader.engine.encoder
        try:
            said = await asyncio.to_thread(self.store.read_options, version.digest)
            return await asyncio.to_thread(export, folder, said, version.adapter, encoder)
        except FileNotFoundError:
            raise UnknownAdapter(name, [], f"{name} was deleted meanwhile") from None

    def _shown(self, name: str, stored: str | None) -> str | None:
        """The version that clients see: the one that is served, else the one that is stored."""
        served = self.registry.names.get(name)
        return stored if served is None or stored is None else served.digest

    async def pointer(self, name: str) -> Pointer:
        """Where the name points, whether it can be served or not. Raises UnknownAdapter."""
        pointer = await asyncio.to_thread(self.store.pointer, name)
        if pointer is None or pointer.version is None:
            self.registry.get(name)
            raise UnknownAdapter(name, [], f"what was stored about {name} is damaged: PUT it again")
        return pointer

    async def rollback(self, name: str, prefix: str | None, precondition: Precondition) -> Name:
        """Point the name at an earlier version of its own; none given: the one before.

        Raises UnknownAdapter, UnknownVersion, PreconditionFailed, AdapterRejected, StoreFull.
        """
        async with self._changing:
            pointer = await self.pointer(name)
            precondition(self._shown(name, pointer.version))
            history = pointer.history
            digest = (
                version_before(name, history)
                if prefix is None
                else find_version(name, history, prefix)
            )
            version = await self.load_stored(digest)
            moved = await asyncio.to_thread(self.store.point, name, digest, pointer)
            return self._serve(moved, version)

    async def merge(self, name: str) -> Name:
        """Make the adapter's own copy of the layers it changes; others go on with the base.

        Raises UnknownAdapter, MergeMemoryFull.
        """
        async with self._changing:
            found = self.registry.get(name)
            version = await self.ready(found)
            if version.merged_bytes or not _can_merge(version):
                return found
            wrappers = self.loader.engine.encoder.wrappers
            size = merged_bytes(wrappers, version.adapter)
            held = self.registry.merged_bytes
            if held + size > self.merge_memory_bytes:
                raise MergeMemoryFull(
                    f"merging takes {size:,} bytes beside the {held:,} of other merged adapters, "
                    f"over MERGE_MEMORY_BYTES={self.merge_memory_bytes:,}: unmerge another one first"
                )
            layers = await asyncio.to_thread(merge_lora, wrappers, version.adapter, version.layers)
            self.registry.merged[name] = replace(version, layers=layers, merged_bytes=size)
            return found

    async def unmerge(self, name: str) -> Name:
        """Drop the merged copy; batches that are running keep the one that they started with.

        Raises UnknownAdapter.
        """
        async with self._changing:
            found = self.registry.get(name)
            self.registry.merged.pop(name, None)
            return found


def _can_merge(version: Version) -> bool:
    return any(lora.rescales for lora in version.adapter.layers.values())


def _adapter_folders(adapters_dir: Path) -> list[Path]:
    return sorted(p for p in adapters_dir.glob("*") if looks_like_adapter(p))


def _reason(error: Exception) -> str:
    if isinstance(error, AdapterRejected):
        named = [f"{p.tensor or ''} {p.reason}".strip() for p in error.problems[:5]]
        return "; ".join([error.message, *named])
    return f"{type(error).__name__}: {error}"
