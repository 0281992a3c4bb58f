"""What a start reads of a store before it knows its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalog.local_store import LocalStore
from app.catalog.pointer import deleted
from app.catalog.store import Json
from app.catalog.stored_names import read_names
from tests.catalog.store_contract import commit, point


class CountingStore(LocalStore):
    """Which reports were read."""

    read: tuple[str, ...] = ()

    def report(self, version: str) -> Json | None:
        self.read += (version,)
        return super().report(version)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "store")


def test_a_report_is_read_once_however_many_names_point_at_its_version(
    store: CountingStore,
) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    pointers = [
        point(store, name, version) for name, version in zip("abc", (one, two, one), strict=True)
    ]
    stored = read_names(store)
    assert stored.pointers == pointers
    assert stored.reports == {one: {"rank": 1}, two: {"rank": 1}}
    assert sorted(store.read) == sorted([one, two])


def test_what_cannot_be_read_is_told_and_what_is_deleted_is_not(store: CountingStore) -> None:
    version = commit(store, b"one")
    for name in "abc":
        point(store, name, version)
    gone = store.look("c")
    store.move(gone, deleted(gone))
    (store.root / "names" / "a.json").write_text("{")
    stored = read_names(store)
    assert [pointer.name for pointer in stored.pointers] == ["b"]
    assert stored.broken.keys() == {"a"}
    assert "damaged" in stored.broken["a"]
