"""Versions and names on disk: compare-and-swap, deletion, what a crash leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.catalog.disk import StoreUnavailable, StoreUnusable, alone
from app.catalog.local_store import StaleRevision, Store, content_version
from app.catalog.pointer import Entry, Pointer, deleted, moved, now, staged, valid_name


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


def point(store: Store, name: str, version: str, keep: int = 64) -> Pointer:
    before = store.pointer(name)
    return store.move(before, moved(before or Pointer(name), Entry(version, now()), keep))


def test_a_name_moves_only_from_where_it_was_seen(store: Store) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    first = point(store, "x", one)
    point(store, "x", two)
    with pytest.raises(StaleRevision):
        store.move(first, moved(first, Entry(one, now()), 64))
    with pytest.raises(StaleRevision):
        store.move(None, moved(Pointer("x"), Entry(one, now()), 64))
    pointer = store.pointer("x")
    assert pointer is not None
    assert (pointer.version, pointer.revision) == (two, 2)
    assert [e.version for e in pointer.history] == [one, two]


def test_deleting_drops_versions_that_no_other_name_holds(store: Store) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    point(store, "x", one)
    x = point(store, "x", two)
    point(store, "y", two)
    store.move(x, deleted(x))
    assert store.pointer("x") is None
    assert not store.version_folder(one).exists()
    assert store.version_folder(two).exists()
    assert store.names() == ["y"]


def test_a_deleted_folders_content_is_remembered(store: Store) -> None:
    x = point(store, "x", commit(store, b"one"))
    x = store.move(x, replace(x, folder="content"))
    store.move(x, deleted(x))
    gone = store.pointer("x")
    assert gone is not None
    assert (gone.version, gone.folder, gone.history) == (None, "content", ())


def test_of_many_versions_the_last_stay_and_what_is_in_use(store: Store) -> None:
    versions = [commit(store, bytes([i])) for i in range(6)]
    pointer = point(store, "x", versions[0], keep=2)
    for version in versions[1:4]:
        pointer = store.move(pointer, staged(pointer, Entry(version, now(), how="stage"), 2))
    assert pointer.version == versions[0]
    assert [e.version for e in pointer.history] == [versions[0], *versions[2:4]]
    assert not store.version_folder(versions[1]).exists()
    point(store, "x", versions[4], keep=2)
    assert [v for v in versions if store.version_folder(v).exists()] == [
        *versions[3:5],
        versions[5],
    ]


def test_leftovers_of_a_crash_are_swept_at_start_and_the_rest_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = point(store, "x", commit(store, b"one"))
    left = commit(store, b"committed, and then killed")
    (tmp_path / "tmp" / "half").mkdir()
    (tmp_path / "tmp" / "half" / "body").write_bytes(b"...")
    (tmp_path / "tmp" / "file").write_bytes(b"...")
    again = Store(tmp_path)
    again.sweep()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert again.pointer("x") == kept
    assert not again.version_folder(left).exists()
    assert again.version_folder(kept.version or "").exists()


def test_beside_a_damaged_name_no_version_is_swept(store: Store) -> None:
    version = point(store, "x", commit(store, b"one")).version
    (store.root / "names" / "x.json").write_text("{")
    assert store.pointer("x") is None
    store.sweep()
    assert store.version_folder(version or "").exists()


def test_a_move_that_fails_after_its_rename_loses_no_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    pointer = point(store, "x", one)
    store.sweep()  # commits again below: two was nobody's
    two = commit(store, b"two")

    def failing(path: Path) -> None:
        if path.name == "names":
            raise OSError(5, "the disk fails")

    with monkeypatch.context() as patched:
        patched.setattr("app.catalog.local_store.fsync", failing)
        with pytest.raises(StoreUnavailable):
            store.move(pointer, moved(pointer, Entry(two, now()), 64))
    store.drop_unheld({two})
    found = store.pointer("x")
    assert found is not None and found.version is not None
    assert store.version_folder(found.version).exists()


def test_a_pointer_with_a_flipped_character_is_set_aside_and_costs_no_version(store: Store) -> None:
    version = point(store, "x", commit(store, b"one")).version or ""
    path = store.root / "names" / "x.json"
    text = path.read_text()
    other = version.replace(version[0], "0" if version[0] != "0" else "1", 1)
    path.write_text(text.replace(version, other, 1))
    assert store.pointer("x") is None
    store.sweep()
    assert store.version_folder(version).exists()
    assert (store.root / "names" / "x.json.damaged").exists()


def test_a_store_that_was_not_locked_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pointer = point(store, "x", commit(store, b"one"))
    reader = Store(tmp_path, may_write=False)
    assert reader.pointer("x") == pointer
    with pytest.raises(StoreUnavailable, match="read-only when this server started"):
        commit(reader, b"two")
    with pytest.raises(StoreUnavailable):
        reader.move(pointer, deleted(pointer))


def test_going_to_and_fro_keeps_both_versions_and_a_bounded_history(store: Store) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    for _ in range(40):
        point(store, "x", one, keep=2)
        pointer = point(store, "x", two, keep=2)
    assert len(pointer.history) <= 10
    assert pointer.versions == {one, two}
    again = staged(pointer, Entry(two, now(), how="stage"), 2)
    assert again == pointer


def test_a_store_has_one_server(tmp_path: Path) -> None:
    with (
        alone(tmp_path),
        pytest.raises(StoreUnusable, match="in use by process"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path):
        pass


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


def test_killed_at_any_step_the_old_state_is_there_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.catalog.crashing", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["faults"] == []
    assert sum(found["kills"].values()) > 200, found["kills"]
