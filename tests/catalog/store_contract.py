"""What every store promises (app/catalog/store.py), as tests that each implementation inherits.

A class that inherits StoreContract gives `store` and `another`: a second one on the same place, as
another process would open it; and damage(). One that is slower sets the numbers, too.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from app.catalog.pointer import Entry, Pointer, deleted, moved, now, staged
from app.catalog.store import StaleRevision, Store, VersionDamaged, content_version


def commit(store: Store, content: bytes) -> str:
    """A version of one file."""
    with store.receiving() as tmp:
        folder = tmp / "adapter"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(content)
        version = content_version(folder, {"alpha": 16})
        store.commit(folder, version, {"alpha": 16}, {"rank": 1})
    return version


def point(store: Store, name: str, version: str, keep: int = 64) -> Pointer:
    """The name, wherever it is, moves to the version."""
    before = store.look(name)
    return store.move(before, moved(before, Entry(version, now()), keep))


def is_there(store: Store, version: str) -> bool:
    try:
        return store.folder(version).is_dir()
    except VersionDamaged:
        return False


def collect_all(store: Store) -> None:
    """As after a grace in which nothing happened."""
    store.collect(0)
    store.collect(0)


class StoreContract:
    """The promises. Not collected by itself.

    GRACE_S: more than it takes to commit, wait a tenth of it and point, while all the others do.
    """

    WRITERS = 8
    ROUNDS = 20
    GRACE_S = 1.0
    RACE_S = 3.0

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def another(self, store: Store) -> Store:
        raise NotImplementedError

    def damage(self, store: Store, version: str) -> None:
        """Its file, where all read it from, is another one's from now on."""
        raise NotImplementedError

    def test_a_receiving_folder_is_its_own_and_gone_afterwards(self, store: Store) -> None:
        with store.receiving() as one, store.receiving() as two:
            assert one != two
            (one / "body").write_bytes(b"x")
            assert list(two.iterdir()) == []
        assert not one.exists()
        assert not two.exists()

    def test_what_is_committed_is_read_back_by_everybody(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        for reader in (store, another):
            folder = reader.folder(version)
            assert (folder / "adapter_model.safetensors").read_bytes() == b"one"
            assert reader.options(version) == {"alpha": 16}
            assert reader.report(version) == {"rank": 1}

    def test_a_commit_again_changes_nothing(self, store: Store) -> None:
        version = commit(store, b"one")
        store.write_report(version, {"rank": 2})
        assert commit(store, b"one") == version
        assert store.report(version) == {"rank": 2}

    def test_a_version_that_nobody_has_committed_is_told_as_damaged(self, store: Store) -> None:
        with pytest.raises(VersionDamaged):
            store.folder("0" * 64)
        with pytest.raises(VersionDamaged):
            store.options("0" * 64)
        assert store.report("0" * 64) is None
        assert store.set_aside("0" * 64) is None

    def test_a_damaged_version_is_set_aside_and_a_commit_heals_it(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        self.damage(store, version)
        with pytest.raises(VersionDamaged):
            another.folder(version)
        assert another.set_aside(version)
        assert another.set_aside_versions() == [version]
        commit(another, b"one")
        assert is_there(another, version)
        assert is_there(store, version)

    def test_a_commit_replaces_a_damaged_version(self, store: Store, another: Store) -> None:
        version = commit(store, b"one")
        self.damage(store, version)
        assert commit(store, b"one") == version
        assert is_there(another, version)

    def test_a_whole_version_is_not_set_aside(self, store: Store) -> None:
        version = commit(store, b"one")
        assert store.set_aside(version) is None
        assert is_there(store, version)

    def test_a_name_that_was_never_there_has_revision_0(self, store: Store) -> None:
        assert store.look("x") == Pointer("x")

    def test_a_look_gives_what_was_seen_where_nothing_has_moved(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        pointer = point(store, "x", version)
        assert another.look("x", pointer) is pointer
        later = point(store, "x", version)
        assert another.look("x", pointer) == later != pointer

    def test_a_name_moves_only_from_where_it_was_seen(self, store: Store, another: Store) -> None:
        one, two = commit(store, b"one"), commit(another, b"two")
        first = point(store, "x", one)
        point(another, "x", two)
        for seen in (first, Pointer("x")):
            with pytest.raises(StaleRevision):
                store.move(seen, moved(seen, Entry(one, now()), 64))
        pointer = store.look("x")
        assert (pointer.version, pointer.revision) == (two, 2)
        assert [e.version for e in pointer.history] == [one, two]

    def test_of_writers_who_saw_the_same_exactly_one_wins(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        stores = [store, another] * (self.WRITERS // 2)
        for _ in range(self.ROUNDS):
            seen = store.look("x")
            barrier = Barrier(self.WRITERS)

            def write(i: int, seen: Pointer = seen, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                try:
                    stores[i].move(seen, moved(seen, Entry(version, now(), by=str(i)), 64))
                except StaleRevision:
                    return False
                return True

            with ThreadPoolExecutor(self.WRITERS) as pool:
                assert sum(pool.map(write, range(self.WRITERS))) == 1
            assert store.look("x").revision == seen.revision + 1

    def test_of_writers_who_try_again_none_is_lost(self, store: Store, another: Store) -> None:
        version = commit(store, b"one")
        stores = [store, another] * (self.WRITERS // 2)

        def write(i: int) -> None:
            for _ in range(3):
                while True:
                    try:
                        point(stores[i], "x", version)
                        break
                    except StaleRevision:
                        continue

        with ThreadPoolExecutor(self.WRITERS) as pool:
            list(pool.map(write, range(self.WRITERS)))
        assert store.look("x").revision == 3 * self.WRITERS

    def test_a_revision_does_not_come_back_with_a_name_that_was_deleted(
        self, store: Store, another: Store
    ) -> None:
        """ABA: put, delete and put again end at the same version, and are not the same."""
        version = commit(store, b"one")
        stale = point(store, "x", version)
        tombstone = another.move(stale, deleted(stale))
        assert (tombstone.version, tombstone.revision) == (None, 2)
        assert store.look("x") == tombstone
        again = point(another, "x", version)
        assert (again.version, again.revision) == (version, 3)
        with pytest.raises(StaleRevision):
            store.move(stale, deleted(stale))
        assert store.look("x") == again

    def test_a_tombstone_remembers_which_folders_content_is_not_to_come_back(
        self, store: Store
    ) -> None:
        pointer = point(store, "x", commit(store, b"one"))
        pointer = store.move(pointer, replace(pointer, folder="content"))
        tombstone = store.move(pointer, deleted(pointer))
        assert store.look("x") == replace(Pointer("x"), revision=3, folder="content")
        store.move(tombstone, replace(tombstone, folder=None))
        assert store.look("x") == Pointer("x", revision=4)

    def test_names_come_in_order_by_pages_and_without_tombstones(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        names = [f"n{i:02}" for i in range(25)]
        for name in reversed(names):
            point(store, name, version)
        gone = store.look("n07")
        store.move(gone, deleted(gone))
        names.remove("n07")
        assert list(another.every_name()) == names
        assert another.names("n20") == names[20:]
        assert another.names(names[-1]) == []

    def test_the_epoch_is_another_after_every_move_and_settles(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        epochs = [another.epoch()]
        for _ in range(20):
            point(store, "x", version)
            epochs.append(another.epoch())
        pointer = store.look("x")
        store.move(pointer, deleted(pointer))
        epochs.append(another.epoch())
        assert len(set(epochs)) == len(epochs)
        time.sleep(0.3)
        assert another.epoch() == another.epoch()

    def test_a_version_goes_once_no_name_has_held_it_for_the_grace(self, store: Store) -> None:
        one, two = commit(store, b"one"), commit(store, b"two")
        point(store, "x", one)
        x = point(store, "x", two)
        point(store, "y", two)
        store.move(x, deleted(x))
        assert store.collect(60)
        assert store.collect(60)
        assert is_there(store, one)
        collect_all(store)
        assert not is_there(store, one)
        assert is_there(store, two)
        assert not store.collect(0)

    def test_versions_that_are_staged_on_trial_or_to_be_rolled_back_to_stay(
        self, store: Store
    ) -> None:
        versions = [commit(store, bytes([i])) for i in range(4)]
        pointer = point(store, "x", versions[0])
        pointer = store.move(pointer, staged(pointer, Entry(versions[1], now(), how="stage"), 64))
        point(store, "x", versions[2])
        collect_all(store)
        assert [is_there(store, v) for v in versions] == [True, True, True, False]

    def test_a_commit_takes_the_mark_away(self, store: Store, another: Store) -> None:
        version = commit(store, b"one")
        store.collect(0)
        commit(another, b"one")
        store.collect(0)  # marks it again, and has nothing to delete
        assert is_there(store, version)
        point(another, "x", version)
        collect_all(store)
        assert is_there(store, version)

    def test_what_was_committed_within_the_grace_stays_while_others_collect(
        self, store: Store, another: Store
    ) -> None:
        """Writers commit, wait and point, while two collect: no name loses its version."""
        grace_s, end = self.GRACE_S, time.monotonic() + self.RACE_S

        def collect(collector: Store) -> None:
            while time.monotonic() < end:
                collector.collect(grace_s)

        def write(i: int) -> None:
            writer, name = (store, another)[i % 2], f"n{i}"
            while time.monotonic() < end:
                version = commit(writer, os.urandom(1)[:1])
                time.sleep(grace_s / 10)
                pointer = point(writer, name, version, keep=1)
                assert is_there(writer, version)
                if pointer.revision % 3 == 0:
                    writer.move(pointer, deleted(pointer))

        with ThreadPoolExecutor(self.WRITERS + 2) as pool:
            collecting = [pool.submit(collect, each) for each in (store, another)]
            writing = [pool.submit(write, i) for i in range(self.WRITERS)]
            for task in (*writing, *collecting):
                task.result()
        for name in store.every_name():
            assert is_there(store, store.look(name).version or "")

    def test_audit_records_are_read_newest_first_by_everybody(
        self, store: Store, another: Store
    ) -> None:
        for i in range(5):
            (store, another)[i % 2].append_audit({"n": i})
        for reader in (store, another):
            records = reader.read_audit("", 100, lambda _: True)
            assert [r["n"] for r in records] == [4, 3, 2, 1, 0]
            ids = [r["id"] for r in records]
            assert ids == sorted(ids, reverse=True)
            assert reader.read_audit(ids[1], 2, lambda _: True) == records[2:4]
            assert reader.read_audit("", 2, lambda r: r["n"] % 2 == 1) == [records[1], records[3]]
            assert reader.read_audit(ids[-1], 2, lambda _: True) == []

    def test_who_has_seen_an_epoch_learns_which_names_may_have_moved_since(
        self, store: Store, another: Store
    ) -> None:
        version = commit(store, b"one")
        point(store, "x", version)
        before = another.moves("").epoch
        assert not another.moves(before).names  # none; or None, as the contract allows
        point(store, "y", version)
        point(store, "x", version)
        since = another.moves(before)
        assert since.names is None or since.names == {"x", "y"}
        assert another.moves("of another store").names is None

    def test_an_audit_survives_its_names_deletion(self, store: Store) -> None:
        pointer = point(store, "x", commit(store, b"one"))
        store.append_audit({"name": "x"})
        store.move(pointer, deleted(pointer))
        collect_all(store)
        assert [r["name"] for r in store.read_audit("", 9, lambda _: True)] == ["x"]

    def test_of_records_that_many_append_at_once_none_is_lost(
        self, store: Store, another: Store
    ) -> None:
        def append(i: int) -> None:
            (store, another)[i % 2].append_audit({"n": i})

        with ThreadPoolExecutor(self.WRITERS) as pool:
            list(pool.map(append, range(50)))
        records = store.read_audit("", 100, lambda _: True)
        assert {r["n"] for r in records} == set(range(50))
        assert len({r["id"] for r in records}) == 50
