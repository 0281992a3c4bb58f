"""Names of a store that others move, too: what is read again, and when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from app.adapters.receiving.copying import copy_adapter
from app.assemble import assemble
from app.catalog import names as names_module
from app.catalog.install import How, Installer
from app.catalog.local_store import LocalStore
from app.catalog.names import Names
from app.catalog.pointer import Entry, Pointer, digest_of, moved, now
from app.catalog.store import CacheUnusable, StoreUnavailable, content_version
from app.catalog.stored_names import read_names
from app.inference.metrics import Metrics
from app.settings import Settings
from tests.oracles import make_adapter


class CountedStore(LocalStore):
    """A folder's store that counts looks, and says that others may have it open."""

    shared = True
    looks: ClassVar[Counter[str]] = Counter()

    def look(self, name: str, seen: Pointer | None = None) -> Pointer:
        self.looks[name] += 1
        return super().look(name, seen)


@pytest.fixture
def installer(tiny_bert: Path, tmp_path: Path) -> Installer:
    """Of a server that starts on a store with one name."""
    source = make_adapter(tiny_bert, tmp_path / "a", 0)
    settings = Settings(model=str(tiny_bert), store=tmp_path / "store")
    CountedStore.looks = Counter()
    store = CountedStore(tmp_path / "store")
    runtime, installer = assemble(settings, Metrics(), store)
    runtime.engine.start()
    try:
        asyncio.run(installed(installer, source))
        return installer
    finally:
        runtime.engine.stop()


async def installed(installer: Installer, source: Path) -> None:
    with installer.store.receiving() as tmp:
        copy_adapter(source, tmp / "adapter")
        await installer.install("x", tmp / "adapter", None, How())


def test_a_name_in_use_is_read_again_once_its_time_is_over_and_not_before(
    installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(names: Names) -> tuple[int, int]:
        names.begin(read_names(installer.store))
        following = asyncio.create_task(names.follow())
        await asyncio.sleep(0.3)  # the first look at what has moved
        before = CountedStore.looks["x"]
        for _ in range(20):
            await names.get("x")
        await asyncio.sleep(0.1)
        fresh = CountedStore.looks["x"] - before
        monkeypatch.setattr(names_module, "TTL_S", 0.05)
        end = time.monotonic() + 5
        while CountedStore.looks["x"] == before + fresh and time.monotonic() < end:
            await names.get("x")
            await asyncio.sleep(0.02)
        following.cancel()
        return fresh, CountedStore.looks["x"] - before - fresh

    fresh, old = asyncio.run(asked(installer.names))
    assert fresh == 0
    assert old >= 1


def test_a_name_that_nobody_asks_for_is_known_no_more_where_there_are_many(
    installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that is known whole all stay; of a larger one those that are asked for, while it
    can be asked.
    """
    monkeypatch.setattr(names_module, "EVERY_S", 0.02)
    monkeypatch.setattr(names_module, "TTL_S", 0.05)
    monkeypatch.setattr(names_module, "FORGOTTEN_S", 0.4)

    async def known_after(
        names: Names, *, whole: bool, asked: bool = False, down: bool = False
    ) -> bool:
        names.begin(replace(read_names(installer.store), whole=whole))
        await names.get("x")
        following = asyncio.create_task(names.follow())
        with monkeypatch.context() as patched:
            if down:
                patched.setattr(installer.store, "moves", refused)
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                await asyncio.sleep(0.02)
                if asked:
                    await names.get("x")
            known = "x" in installer.registry.names
        await names.get("x")  # it is still there
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return known

    def refused(_: str) -> None:
        raise StoreUnavailable("it does not answer")

    async def all_of_them(names: Names) -> list[bool]:
        return [
            await known_after(names, whole=True),
            await known_after(names, whole=False, asked=True),
            await known_after(names, whole=False, down=True),
            await known_after(names, whole=False),
        ]

    assert asyncio.run(all_of_them(installer.names)) == [True, True, True, False]


def test_where_the_cache_takes_no_new_version_the_old_one_is_not_served_in_its_place(
    installer: Installer, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server moves a name whose version is in memory here."""
    monkeypatch.setattr(names_module, "EVERY_S", 0.02)
    newer = make_adapter(tiny_bert, tmp_path / "b", 1)
    elsewhere = LocalStore(tmp_path / "store")
    with elsewhere.receiving() as tmp:
        copy_adapter(newer, tmp / "adapter")
        version = content_version(tmp / "adapter", {})
        report = elsewhere.report(elsewhere.look("x").version or "") or {}
        fields = {k: v for k, v in report.items() if k != "sha256"}
        fields["report"] = fields["report"] | {"version": version}
        signed = fields | {"sha256": digest_of(fields)}
        elsewhere.commit(tmp / "adapter", version, {}, signed)

    def full(_: str) -> Path:
        raise CacheUnusable("this server's cache takes no more")

    async def followed(names: Names) -> str:
        names.begin(read_names(installer.store))
        old = (await names.get("x")).digest
        await installer.fetcher.load_stored(old)
        following = asyncio.create_task(names.follow())
        monkeypatch.setattr(installer.store, "folder", full)
        before = elsewhere.look("x")
        elsewhere.move(before, moved(before, Entry(version, now()), 64))
        for _ in range(250):
            if (served := await names.get("x")).digest != old:
                break
            await asyncio.sleep(0.02)
        with pytest.raises(CacheUnusable):
            await installer.fetcher.ready(served)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return served.digest

    assert asyncio.run(followed(installer.names)) == version


def test_after_an_outage_longer_than_names_are_remembered_none_is_forgotten_at_once(
    installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def known_then(names: Names) -> bool:
        names.begin(replace(read_names(installer.store), whole=False))
        names._lost("it does not answer")
        monkeypatch.setattr(names_module, "FORGOTTEN_S", 0.1)
        await asyncio.sleep(0.2)
        names._found()
        names._forget_unused()
        return "x" in installer.registry.names

    assert asyncio.run(known_then(installer.names))


def test_an_own_move_that_is_answered_late_leaves_what_another_has_moved_since(
    installer: Installer,
) -> None:
    fetcher, registry = installer.fetcher, installer.registry
    name = registry.names["x"]
    newer, older = (replace(name.pointer, revision=n) for n in (7, 6))
    fetcher.point(newer, name.report)
    fetcher.point(older, name.report, moved=True)
    assert registry.names["x"].pointer == newer
    fetcher.point(older, name.report)  # as the store has it: it has gone back
    assert registry.names["x"].pointer == older
