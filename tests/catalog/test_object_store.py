"""The store in a bucket: the contract's promises on a real SeaweedFS, and what only a bucket has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from app.catalog.store import Store
from tests.catalog.seaweed import Seaweed
from tests.catalog.store_contract import StoreContract, commit, is_there, point
from tests.catalog.unreliable import Fault, Unreliable


def overwrite(seaweed: Seaweed, prefix: str, version: str, content: bytes) -> None:
    """Its file in the bucket, by who knows nothing of stores."""
    raw = seaweed.raw(prefix)
    (page,) = obstore.list(raw, prefix=f"files/{version}")
    (path,) = (one["path"] for one in page if one["path"].endswith(".safetensors"))
    obstore.put(raw, path, content)


@pytest.fixture
def prefix(seaweed: Seaweed) -> str:
    return seaweed.fresh_prefix()


@pytest.fixture
def store(seaweed: Seaweed, prefix: str, tmp_path: Path) -> Iterator[Store]:
    with seaweed.store(prefix, tmp_path / "cache") as store:
        yield store


@pytest.fixture
def another(seaweed: Seaweed, prefix: str, tmp_path: Path) -> Iterator[Store]:
    with seaweed.store(prefix, tmp_path / "another cache") as store:
        yield store


class TestObjectStore(StoreContract):
    WRITERS = 16
    ROUNDS = 5  # SeaweedFS makes those who lose wait for seconds
    GRACE_S = 3.0
    RACE_S = 8.0

    @pytest.fixture
    def store(self, seaweed: Seaweed, prefix: str, tmp_path: Path) -> Iterator[Store]:
        with seaweed.store(prefix, tmp_path / "cache") as store:
            yield store

    @pytest.fixture
    def another(self, seaweed: Seaweed, prefix: str, tmp_path: Path) -> Iterator[Store]:
        with seaweed.store(prefix, tmp_path / "another cache") as store:
            yield store

    @pytest.fixture(autouse=True)
    def _to_damage(self, seaweed: Seaweed, prefix: str) -> None:
        self.place = seaweed, prefix

    def damage(self, store: Store, version: str) -> None:
        overwrite(*self.place, version, b"two")


def test_a_cached_version_is_served_though_its_object_is_damaged(
    seaweed: Seaweed, prefix: str, store: Store
) -> None:
    version = commit(store, b"one")
    overwrite(seaweed, prefix, version, b"two")
    assert (store.folder(version) / "adapter_model.safetensors").read_bytes() == b"one"


def test_a_cached_file_that_is_damaged_is_fetched_again(store: Store) -> None:
    version = commit(store, b"one")
    (store.folder(version) / "adapter_model.safetensors").write_bytes(b"two")
    assert (store.folder(version) / "adapter_model.safetensors").read_bytes() == b"one"


def test_what_one_replica_reads_badly_stays_for_the_others(
    seaweed: Seaweed, prefix: str, store: Store, tmp_path: Path
) -> None:
    version = commit(store, b"one")
    point(store, "x", version)
    with (
        Unreliable(seaweed.endpoint, "bucket", prefix) as proxy,
        Seaweed(proxy.endpoint).store(prefix, tmp_path / "behind") as behind,
        proxy.failing(Fault("corrupt", "GET", "files/")),
    ):
        assert not is_there(behind, version)
        behind.set_aside(version)
    with seaweed.store(prefix, tmp_path / "fresh") as fresh:
        assert is_there(fresh, version)
        assert fresh.look("x").version == version


def test_a_cache_keeps_to_its_bytes_and_serves_all(
    seaweed: Seaweed, prefix: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalog.disk_cache.IN_USE_S", 0.0)
    versions = [commit(store, bytes([i]) * 1000) for i in range(8)]
    cache = tmp_path / "small"
    with seaweed.store(prefix, cache, cache_bytes=3_500) as small:
        for version in versions * 2:
            assert is_there(small, version)
            size = sum(f.stat().st_size for f in cache.rglob("*.safetensors"))
            assert size <= 3_500


def test_two_stores_with_other_prefixes_know_nothing_of_each_other(
    seaweed: Seaweed, store: Store, tmp_path: Path
) -> None:
    version = commit(store, b"one")
    point(store, "x", version)
    with seaweed.store(seaweed.fresh_prefix(), tmp_path / "elsewhere") as elsewhere:
        assert elsewhere.look("x").revision == 0
        assert list(elsewhere.every_name()) == []
        assert not is_there(elsewhere, version)
