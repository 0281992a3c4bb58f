"""The store on disk: the contract's promises, and what a crash, damage or another process leaves."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from app.catalog.disk import alone
from app.catalog.local_store import LocalStore
from app.catalog.pointer import Entry, Pointer, deleted, digest_of, moved, now, staged
from app.catalog.store import (
    StaleRevision,
    Store,
    StoreUnavailable,
    StoreUnusable,
    content_version,
)
from tests.catalog.store_contract import StoreContract, collect_all, commit, is_there, point

PROCESSES, MOVES = 4, 10


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "store")

    @pytest.fixture
    def another(self, store: LocalStore) -> LocalStore:
        return LocalStore(store.root)

    def damage(self, store: Store, version: str) -> None:
        (store.folder(version) / "adapter_model.safetensors").write_bytes(b"two")


def race(root: Path, version: str) -> int:
    """How often this process was too late before its moves had all won."""
    store, stale = LocalStore(root), 0
    for _ in range(MOVES):
        while True:
            try:
                point(store, "x", version)
                break
            except StaleRevision:
                stale += 1
    return stale


def test_of_processes_that_move_one_name_none_loses_a_move(store: LocalStore) -> None:
    version = commit(store, b"one")
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(race, [(store.root, version)] * PROCESSES)
    assert store.look("x").revision == PROCESSES * MOVES


def test_a_start_removes_what_a_killed_process_left_and_nothing_that_is_in_use(
    store: LocalStore,
) -> None:
    pointer = point(store, "x", commit(store, b"one"))
    orphan = commit(store, b"committed, and then killed")
    (store.root / "tmp" / "half").mkdir()
    (store.root / "tmp" / "half" / "body").write_bytes(b"...")
    (store.root / "tmp" / "file").write_bytes(b"...")
    with store.receiving() as folder:
        again = LocalStore(store.root)
        assert list((store.root / "tmp").iterdir()) == [folder]
    assert list((store.root / "tmp").iterdir()) == []
    collect_all(again)
    assert again.look("x") == pointer
    assert not is_there(again, orphan)
    assert is_there(again, pointer.version or "")


def test_of_many_versions_the_last_stay_and_what_is_in_use(store: LocalStore) -> None:
    versions = [commit(store, bytes([i])) for i in range(6)]
    pointer = point(store, "x", versions[0], keep=2)
    for version in versions[1:4]:
        pointer = store.move(pointer, staged(pointer, Entry(version, now(), how="stage"), 2))
    assert pointer.version == versions[0]
    assert [e.version for e in pointer.history] == [versions[0], *versions[2:4]]
    collect_all(store)
    assert [v for v in versions if is_there(store, v)] == [versions[0], *versions[2:4]]


def test_a_damaged_name_is_listed_set_aside_once_and_healed_by_a_move(store: LocalStore) -> None:
    version = point(store, "x", commit(store, b"one")).version or ""
    path = store.root / "names" / "x.json"
    text = path.read_text()
    other = version.replace(version[0], "0" if version[0] != "0" else "1", 1)
    path.write_text(text.replace(version, other, 1))
    assert list(store.every_name()) == ["x"]
    assert store.look("x") == Pointer("x")
    assert (store.root / "names" / "x.json.damaged").exists()
    collect_all(store)
    assert is_there(store, version)  # nobody can tell whose it was
    assert point(store, "x", version).revision == 1


@pytest.mark.parametrize("more", [{"format": 99}, {"owner": "ann"}])
def test_a_newer_servers_name_is_refused_for_changes_and_left_as_it_is(
    store: LocalStore, more: dict[str, object]
) -> None:
    version = point(store, "x", commit(store, b"one")).version or ""
    path = store.root / "names" / "x.json"
    members = json.loads(path.read_text()) | more
    del members["sha256"]
    path.write_text(json.dumps({**members, "sha256": digest_of(members)}))
    before = path.read_bytes()
    for change in (
        lambda: store.look("x"),
        lambda: store.move(Pointer("x", revision=1), Pointer("x", version)),
        lambda: store.move(Pointer("x", revision=1), deleted(Pointer("x", revision=1))),
    ):
        with pytest.raises(StoreUnavailable, match="a newer server has written it"):
            change()
    commit(store, b"two")
    collect_all(store)
    assert is_there(store, version)
    assert path.read_bytes() == before
    assert list(store.every_name()) == ["x"]


def test_a_tombstone_of_an_older_server_is_read(store: LocalStore) -> None:
    old = {"version": None, "revision": 4, "folder": "content", "history": [], "deleted": True}
    (store.root / "names" / "x.json").write_text(json.dumps({**old, "sha256": digest_of(old)}))
    assert store.look("x") == Pointer("x", None, 4, "content")
    assert point(store, "x", commit(store, b"one")).revision == 5


def test_a_move_that_fails_after_its_rename_loses_no_version(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    pointer = point(store, "x", one)

    def failing(path: Path) -> None:
        if path.name == "names":
            raise OSError(5, "the disk fails")

    with monkeypatch.context() as patched:
        patched.setattr("app.catalog.local_names.fsync", failing)
        with pytest.raises(StoreUnavailable):
            store.move(pointer, moved(pointer, Entry(two, now()), 64))
    collect_all(store)
    assert is_there(store, store.look("x").version or "")


def test_a_store_that_was_not_locked_is_not_written(store: LocalStore) -> None:
    pointer = point(store, "x", commit(store, b"one"))
    reader = LocalStore(store.root, may_write=False)
    assert reader.look("x") == pointer
    with pytest.raises(StoreUnavailable, match="read-only when this server started"):
        commit(reader, b"two")
    with pytest.raises(StoreUnavailable):
        reader.move(pointer, deleted(pointer))
    assert not reader.collect(0)


def test_going_to_and_fro_keeps_both_versions_and_a_bounded_history(store: LocalStore) -> None:
    one, two = commit(store, b"one"), commit(store, b"two")
    for _ in range(40):
        point(store, "x", one, keep=2)
        pointer = point(store, "x", two, keep=2)
    assert len(pointer.history) <= 10
    assert pointer.versions == {one, two}


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
        LocalStore(tmp_path / "file")


def test_the_version_is_the_contents_and_what_the_query_said(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    plain = content_version(tmp_path, {})
    assert content_version(tmp_path, {"alpha": 16}) != plain
    (tmp_path / "notes.txt").write_text("not part of it")
    assert content_version(tmp_path, {}) == plain
    (tmp_path / "config.json").write_text("{}")
    assert content_version(tmp_path, {}) != plain


@pytest.mark.slow
def test_killed_at_any_step_the_old_state_is_there_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.catalog.crashing", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout)
    assert result["faults"] == []
    assert sum(result["kills"].values()) > 200, result["kills"]


def test_half_a_line_that_a_kill_has_left_costs_no_other_record(store: LocalStore) -> None:
    store.append_audit({"n": 0})
    (file,) = (store.root / "audit").iterdir()
    with file.open("ab") as torn:
        torn.write(b'{"id": "0179')
    assert [r["n"] for r in store.read_audit("", 9, lambda _: True)] == [0]
    store.append_audit({"n": 1})
    assert [r["n"] for r in store.read_audit("", 9, lambda _: True)] == [1, 0]
    assert len(file.read_bytes().splitlines()) == 3


def test_of_an_audit_that_grows_the_oldest_records_go(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalog.local_audit.FILE_BYTES", 1000)
    monkeypatch.setattr("app.catalog.local_audit.FILES", 3)
    for i in range(200):
        store.append_audit({"n": i})
    files = list((store.root / "audit").iterdir())
    assert len(files) == 3
    assert all(file.stat().st_size <= 1000 for file in files)
    numbers = [r["n"] for r in store.read_audit("", 1000, lambda _: True)]
    assert numbers == list(range(199, 199 - len(numbers), -1))
    assert len(numbers) > 40


def test_ids_go_on_where_the_clock_goes_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_audit({"n": 0})
    monkeypatch.setattr("app.catalog.local_audit.time.time_ns", lambda: 5)
    store.append_audit({"n": 1})
    assert [r["n"] for r in store.read_audit("", 9, lambda _: True)] == [1, 0]


def test_a_store_that_was_not_locked_takes_no_record(store: LocalStore) -> None:
    with pytest.raises(StoreUnavailable):
        LocalStore(store.root, may_write=False).append_audit({"n": 0})
