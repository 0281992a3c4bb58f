"""Names of a store that others move, too: what is read again, and when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from app.adapters.receiving.copying import copy_adapter
from app.assemble import assemble
from app.catalog import names as names_module
from app.catalog.install import How, Installer
from app.catalog.local_store import LocalStore
from app.catalog.names import Names
from app.catalog.pointer import Pointer
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
