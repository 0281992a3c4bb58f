"""The life of adapters: PUT and a watched folder alike; delete, rollback.

receive -> unpack -> load (load.py) -> commit -> move -> point. One change at a time in this
process, and requests in flight never wait for one; other processes are met by compare-and-swap.
Knows the store, the registry and the engine; knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, assert_never

from app.adapters.files import folder_state
from app.adapters.receiving.archive import unpack
from app.adapters.receiving.copying import copy_adapter
from app.adapters.receiving.own_files import left_aside, other_folders
from app.adapters.receiving.received import Received
from app.adapters.receiving.source import Sources, fetch_source
from app.adapters.recipe import Options
from app.adapters.refusals import AdapterRejected
from app.adapters.report import Report
from app.catalog.change import Change
from app.catalog.export import export
from app.catalog.fetch import Fetcher, reason_of
from app.catalog.fitting import with_fitting_trial
from app.catalog.load import Loader, load_version, options_to_json, to_store
from app.catalog.names import Names
from app.catalog.open_store import receiving
from app.catalog.pointer import Entry, OlderThanAsked, Pointer, deleted, moved, now, staged
from app.catalog.registry import Name, Registry, UnknownAdapter, find_version, version_before
from app.catalog.store import Store, StoreUnavailable, content_version
from app.catalog.stored_version import Changes, StoredVersion
from app.catalog.winning import until_it_wins

T = TypeVar("T")


class PreconditionFailed(Exception):
    """If-Match or If-None-Match does not hold."""


@dataclass(frozen=True, eq=False)
class Installed:
    """What a PUT did. name: None after a dry run, which changes nothing and tells the changes."""

    report: Report
    name: Name | None
    created: bool = False
    unchanged: bool = False
    changes: Changes | None = None


Precondition = Callable[[str | None], None]  # gets the current version; raises PreconditionFailed


def _always(_: str | None) -> None:
    """No precondition."""


@dataclass(frozen=True)
class How:
    """What a PUT asks for beside the files. change: who asks, and what becomes of it.

    path: which of the upload's folders; None: the one that has weights. tokens_per_s: what it may
    be asked for, 0: any; None: as before. stage: hold the version beside the current one.
    """

    options: Options = field(default_factory=Options)
    allow_noop: bool = False
    tokens_per_s: float | None = None
    stage: bool = False
    dry_run: bool = False
    precondition: Precondition = _always
    change: Change = field(default_factory=Change)
    path: str | None = None


@dataclass(eq=False)
class Installer:
    """Sizes in bytes. keep_versions: of a name. changing: the lock of who changes a name."""

    store: Store
    registry: Registry
    loader: Loader
    fetcher: Fetcher
    names: Names
    max_adapter_bytes: int
    merge_memory_bytes: int
    keep_versions: int
    sources: Sources
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """To change a name. Raises StoreUnavailable at once where the store is known to be down."""
        self.names.refuse_unreachable()
        async with self.changing:
            self.names.refuse_unreachable()
            yield

    async def install_body(
        self, name: str, tmp: Path, upload: Path | Received | str, how: How
    ) -> Installed:
        """An upload becomes the name's version: bytes on disk, received files, or a source's name.

        tmp: a folder of the store's for this upload alone. Raises AdapterRejected, UploadTooLarge,
        SourceForbidden, PreconditionFailed, StoreFull, StoreUnavailable; UnknownAdapter where a
        version is staged beside none.
        """
        folder, size = tmp / "adapter", self.max_adapter_bytes
        folder.mkdir()
        other_files: list[str] = []
        match upload:
            case str():
                await asyncio.to_thread(fetch_source, upload, self.sources, folder, size, how.path)
            case Received():
                other_files = await asyncio.to_thread(upload.settle, folder, how.path)
            case Path():
                other_files = await asyncio.to_thread(unpack, upload, folder, size, how.path)
            case _:
                assert_never(upload)
        try:
            installed = await self.install(name, folder, None, how)
        except AdapterRejected as error:
            error.problems += other_folders(other_files)
            raise
        warnings = (*installed.report.warnings, *left_aside(other_files))
        return replace(installed, report=replace(installed.report, warnings=warnings))

    async def install_folder(self, name: str, source: Path, change: Change) -> Installed | None:
        """A folder of ADAPTERS_DIR becomes the name's version when its content is new; else None.

        None as well for one that is being written. Raises AdapterRejected, StoreFull,
        StoreUnavailable.
        """
        async with receiving(self.store) as tmp:
            folder = tmp / "adapter"
            state = await asyncio.to_thread(folder_state, source)
            await asyncio.to_thread(copy_adapter, source, folder)
            if await asyncio.to_thread(folder_state, source) != state:
                return None
            content = await asyncio.to_thread(content_version, folder, {})
            pointer = await self.fetcher.ask(self.store.look, name)
            if pointer.folder == content:
                return None
            return await self.install(name, folder, content, How(change=change))

    async def install(self, name: str, folder: Path, content: str | None, how: How) -> Installed:
        """A folder of adapter files becomes the name's version, as `how` says.

        content: the folder's hash where it comes from ADAPTERS_DIR. Where another server moves the
        name meanwhile, this is tried again on what it has become.
        Raises as install_body.
        """
        options = options_to_json(how.options)
        digest = await asyncio.to_thread(content_version, folder, options)
        async with self.turn():
            current = (await self.fetcher.ask(self.store.look, name)).version
            how.change.of(name, current, digest)
            how.precondition(current)
            if how.stage:
                await self.names.get(name)
            version = await load_version(
                self.loader, folder, digest, options, allow_noop=how.allow_noop
            )
            if how.dry_run:
                base = self.loader.engine.encoder.base
                changes = await asyncio.to_thread(version.changes, base)
                return Installed(version.report, None, changes=changes)
            report = to_store(version.report, self.loader.engine.encoder)
            await self.fetcher.ask(self.store.commit, folder, digest, options, report)
            return await until_it_wins(partial(self._point, name, version, content, how))

    async def _point(
        self, name: str, version: StoredVersion, content: str | None, how: How
    ) -> Installed:
        """Move the name to a committed version. Raises StaleRevision, PreconditionFailed."""
        before = await self.names.look(name)
        how.change.of(name, before.version, version.digest)
        how.precondition(before.version)
        if how.stage and before.version is None:
            await self.fetcher.pointer(name)  # deleted meanwhile
        with suppress(UnknownAdapter, OlderThanAsked):  # none is there, or can be served
            await self.names.get(name, before.revision)
        served = self.registry.names.get(name)
        unchanged = served is not None and before.version == version.digest == served.digest
        after = self._after(before, version.digest, content, how, unchanged)
        if not how.stage:
            after = await with_fitting_trial(self.fetcher, after, version.report)
        if served is not None and after == before:
            return Installed(version.report, served, unchanged=True)
        pointer = await self.move(before, after, how.change)
        if how.stage and served is not None:
            served = self.fetcher.point(pointer, served.report, moved=True)
            return Installed(version.report, served)
        served = self.fetcher.serve(pointer, version, moved=True)
        return Installed(version.report, served, before.version is None, unchanged)

    def _after(
        self, before: Pointer, digest: str, content: str | None, how: How, unchanged: bool
    ) -> Pointer:
        """Where an upload moves a name.

        What a folder brought and a client puts again is the client's.
        """
        entry = Entry(digest, now(), how.change.by, "folder" if content else "put")
        if how.stage:
            after = staged(before, replace(entry, how="stage"), self.keep_versions)
        elif unchanged and before.from_folder == (content is not None):
            after = before
        else:
            after = moved(before, entry, self.keep_versions)
        limit = before.tokens_per_s if how.tokens_per_s is None else how.tokens_per_s or None
        return replace(after, folder=content or before.folder, tokens_per_s=limit)

    async def move(self, before: Pointer, after: Pointer, change: Change) -> Pointer:
        """As Store.move, off the event loop; the change has been made then."""
        pointer = await self.names.move(before, after)
        change.done = True
        return pointer

    async def remove(self, name: str, precondition: Precondition, change: Change) -> int:
        """The name is gone at once; requests in flight finish on theirs. Returns its revision.

        Raises UnknownAdapter, PreconditionFailed, StoreFull, StoreUnavailable.
        """
        async with self.turn():
            revision = await until_it_wins(partial(self._bury, name, precondition, change))
            change.done = True
            self.registry.remove(name)  # and read again, should it have been put elsewhere since
            return revision

    async def _bury(self, name: str, precondition: Precondition, change: Change) -> int:
        """Leave a tombstone in the store. Raises StaleRevision, and as remove()."""
        pointer = await self.names.look(name)
        change.of(name, pointer.version, None)
        if pointer.version is None and name not in self.registry.broken:
            if pointer.revision:  # another server has deleted it
                self.registry.remove(name)
            self.registry.get(name)
        precondition(pointer.version)
        if pointer.version is None:
            return pointer.revision
        return (await self.move(pointer, deleted(pointer), change)).revision

    async def files(self, name: str, at_least: int = 0) -> tuple[str, bytes]:
        """The version that is served, and a tar of its folder. at_least: as of Names.get.

        Raises UnknownAdapter; StoreUnavailable where its files are damaged, while it goes on being
        served.
        """
        version = await self.fetcher.ready(await self.names.get(name, at_least))
        try:
            async with self.changing:  # nobody sets them aside and brings them again meanwhile
                folder, options = await self.fetcher.files(version.digest)
            encoder = self.loader.engine.encoder
            tar = await asyncio.to_thread(export, folder, options, version.adapter, encoder)
        except (AdapterRejected, OSError) as error:
            self.registry.get(name)  # or it was deleted meanwhile
            raise StoreUnavailable(f"{name} is served from memory; {reason_of(error)}") from None
        return version.digest, tar

    async def rollback(
        self, name: str, prefix: str | None, precondition: Precondition, change: Change
    ) -> Name:
        """Point the name at an earlier version of its own; none given: the one before.

        Raises UnknownAdapter, UnknownVersion, PreconditionFailed, AdapterRejected, StoreFull,
        StoreUnavailable.
        """
        async with self.turn():
            return await until_it_wins(partial(self._roll_back, name, prefix, precondition, change))

    async def _roll_back(
        self, name: str, prefix: str | None, precondition: Precondition, change: Change
    ) -> Name:
        """Raises StaleRevision, and as rollback()."""
        pointer = await self.fetcher.pointer(name)
        change.of(name, pointer.version, None)
        precondition(pointer.version)
        history = pointer.history
        digest = (
            version_before(name, history, pointer.version or "")
            if prefix is None
            else find_version(name, history, prefix)
        )
        change.of(name, pointer.version, digest)
        version = await self.fetcher.load_stored(digest, moved=True)
        after = moved(pointer, Entry(digest, now(), change.by, "rollback"), self.keep_versions)
        if digest == pointer.version:
            after = replace(after, history=pointer.history)
        after = await with_fitting_trial(self.fetcher, after, version.report)
        return self.fetcher.serve(await self.move(pointer, after, change), version, moved=True)
