"""Versions and names on disk: compare-and-swap, deletion, what a crash leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.adapters.store import StaleRevision, Store, StoreUnusable, content_version, valid_name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, content: bytes) -> str:
    with store.receiving() as tmp:
        folder = tmp / "adapter"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(content)
        digest = content_version(folder, {})
        store.commit(folder, digest, {}, {"rank": 1})
    return digest


def test_a_name_moves_only_from_where_it_was_seen(store: Store) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    first = store.point("x", one, None)
    store.point("x", two, first)
    with pytest.raises(StaleRevision):
        store.point("x", one, first)
    with pytest.raises(StaleRevision):
        store.point("x", one, None)
    pointer = store.pointer("x")
    assert pointer is not None
    assert (pointer.version, pointer.revision) == (two, 2)
    assert [e.version for e in pointer.history] == [one, two]


def test_deleting_drops_versions_that_no_other_name_holds(store: Store) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    x = store.point("x", two, store.point("x", one, None))
    store.point("y", two, None)
    gone = store.point("x", None, x)
    assert gone.version is None
    assert not store.version_folder(one).exists()
    assert store.version_folder(two).exists()
    assert [p.name for p in store.pointers() if p.version] == ["y"]


def test_leftovers_of_a_crash_are_swept_at_start_and_the_rest_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.point("x", commit(store, b"one"), None)
    (tmp_path / "tmp" / "half").mkdir()
    (tmp_path / "tmp" / "half" / "body").write_bytes(b"...")
    again = Store(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert again.pointer("x") == store.pointer("x")


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable):
        Store(tmp_path / "file")


def test_the_version_is_the_contents_and_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    plain = content_version(tmp_path, {})
    assert content_version(tmp_path, {"alpha": 16}) != plain
    (tmp_path / "notes.txt").write_text("not part of it")
    assert content_version(tmp_path, {}) == plain
    (tmp_path / "config.json").write_text("{}")
    assert content_version(tmp_path, {}) != plain


@pytest.mark.parametrize("name", ["a", "a" * 63, "0.x_y-z", "sst2"])
def test_good_names(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize("name", ["", "base", "a" * 64, "A", ".x", "-x", "a/b", "a\n", "ä", ".."])
def test_bad_names(name: str) -> None:
    assert not valid_name(name)
