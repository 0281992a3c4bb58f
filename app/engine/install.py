"""The life of adapters: PUT and the watched folder alike; delete, rollback, merge.

receive -> unpack -> load (load.py) -> commit -> point. One change at a time; requests in flight
never wait for one. Knows the store, the registry and the engine; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
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
    Store,
    StoreFull,
    content_version,
    valid_name,
)
from app.adapters.upload import AdapterRejected
from app.engine.export import export
from app.engine.fetch import Fetcher, reason_of
from app.engine.load import Loader, load_version, said_of, to_store
from app.model.lora import merge_lora, merged_bytes

log = logging.getLogger(__name__)


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
    fetcher: Fetcher
    max_adapter_bytes: int
    merge_memory_bytes: int
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

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
            stored = to_store(report, self.loader.engine.encoder)
            await asyncio.to_thread(self.store.commit, folder, digest, said, stored)
            if unchanged and content is None and merge is None:
                return Installed(report, served, unchanged=True)
            try:
                moved = await asyncio.to_thread(
                    self.store.point, name, digest, pointer, content, how.merge
                )
            except StoreFull:
                await asyncio.to_thread(self.store.drop_unheld, {digest})
                raise
            found = self.fetcher.serve(moved, version)
            return Installed(report, found, current is None, unchanged)

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
                log.error("folder %s is not served: %s", source, reason_of(error))
                refused[name] = reason_of(error)
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
        version = await self.fetcher.ready(self.registry.get(name))
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

    async def rollback(self, name: str, prefix: str | None, precondition: Precondition) -> Name:
        """Point the name at an earlier version of its own; none given: the one before.

        Raises UnknownAdapter, UnknownVersion, PreconditionFailed, AdapterRejected, StoreFull.
        """
        async with self._changing:
            pointer = await self.fetcher.pointer(name)
            precondition(self._shown(name, pointer.version))
            history = pointer.history
            digest = (
                version_before(name, history)
                if prefix is None
                else find_version(name, history, prefix)
            )
            version = await self.fetcher.load_stored(digest)
            moved = await asyncio.to_thread(self.store.point, name, digest, pointer)
            return self.fetcher.serve(moved, version)

    async def merge(self, name: str) -> Name:
        """Make the adapter's own copy of the layers it changes; others go on with the base.

        Raises UnknownAdapter, MergeMemoryFull.
        """
        async with self._changing:
            found = self.registry.get(name)
            version = await self.fetcher.ready(found)
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
