"""The store in a bucket: the contract's promises on a real SeaweedFS, and what only a bucket has."""

from __future__ import annotations

import contextlib
import errno
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import obstore
import pytest

from app.adapters.files import ADAPTER_FILES
from app.catalog import bucket
from app.catalog.disk_cache import DiskCache, cache_errors
from app.catalog.object_names import ObjectNames
from app.catalog.object_versions import ObjectVersions
from app.catalog.open_store import open_store
from app.catalog.pointer import Entry, Pointer, moved, now
from app.catalog.store import CacheUnusable, Store, StoreUnavailable, StoreUnusable, content_version
from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.store_contract import StoreContract, collect_all, commit, is_there, point
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
def opened(seaweed: Seaweed, prefix: str, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """One more replica's store, with a cache of its own."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()
        yield lambda: stack.enter_context(
            seaweed.store(prefix, tmp_path / f"cache {next(numbers)}")
        )


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    return opened()


@pytest.fixture
def another(opened: Callable[[], Store]) -> Store:
    return opened()


class TestObjectStore(StoreContract):
    WRITERS = 16
    ROUNDS = 3  # SeaweedFS makes those who lose wait for seconds
    GRACE_S = 3.0
    RACE_S = 6.0

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        return opened()

    @pytest.fixture
    def another(self, opened: Callable[[], Store]) -> Store:
        return opened()

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


def test_a_version_that_was_read_before_needs_no_bucket(
    seaweed: Seaweed, prefix: str, store: Store, tmp_path: Path
) -> None:
    version = commit(store, b"one")
    store.write_report(version, {"measured": 1})
    with (
        Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy,
        Seaweed(proxy.endpoint).store(prefix, tmp_path / "behind") as behind,
    ):
        behind.folder(version)
        assert behind.report(version) == {"measured": 1}
        asked = sum(proxy.counts.values())
        assert (behind.folder(version) / "adapter_model.safetensors").read_bytes() == b"one"
        assert (behind.options(version), behind.report(version)) == ({"alpha": 16}, {"measured": 1})
        behind.write_report(version, {"measured": 2})
        assert behind.report(version) == {"measured": 2}
        assert sum(proxy.counts.values()) - asked == 1  # the report that was written
    assert store.report(version) == {"measured": 1}


@pytest.mark.parametrize("size", [0, 1, 5, 6, 7, 18, 20])
def test_a_file_comes_whole_whatever_its_size(
    size: int, seaweed: Seaweed, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", 6)
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    content = bytes(range(size))
    obstore.put(seaweed.raw(prefix), "files/x", content)
    place = bucket.Bucket(f"s3://{BUCKET}/{prefix}")
    place.download("files/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        place.download("files/y", tmp_path / "y")


@pytest.mark.parametrize(("times", "comes"), [(1, True), (2, False)])
def test_where_the_caches_disk_is_full_room_is_made_and_else_that_is_said(
    times: int, comes: bool, store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = commit(store, b"one")
    refusals = [OSError(errno.ENOSPC, "No space left on device")] * times
    download = bucket.Bucket.download

    def full(self: bucket.Bucket, path: str, to: Path) -> None:
        if refusals:
            with cache_errors():
                raise refusals.pop()
        download(self, path, to)

    monkeypatch.setattr(bucket.Bucket, "download", full)
    if comes:
        assert is_there(another, version)
    else:
        with pytest.raises(CacheUnusable, match=r"cache \(CACHE_DIR\) takes no more"):
            another.folder(version)


def test_a_cache_that_may_not_be_entered_is_told_as_such(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = commit(store, b"one")

    def refused(*_: object, **__: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(DiskCache, "get", refused)
    monkeypatch.setattr(DiskCache, "put", refused)
    with pytest.raises(CacheUnusable, match=r"cache \(CACHE_DIR\) cannot be used"):
        store.folder(version)


def test_a_folder_in_the_place_of_a_cached_file_is_replaced(store: Store) -> None:
    version = commit(store, b"one")
    file = store.folder(version) / "adapter_model.safetensors"
    file.unlink()
    file.mkdir()
    assert (store.folder(version) / "adapter_model.safetensors").read_bytes() == b"one"


def test_a_cached_file_that_is_damaged_is_fetched_again(store: Store) -> None:
    version = commit(store, b"one")
    (store.folder(version) / "adapter_model.safetensors").write_bytes(b"two")
    assert (store.folder(version) / "adapter_model.safetensors").read_bytes() == b"one"


def test_what_one_replica_reads_badly_stays_for_the_others(
    seaweed: Seaweed, prefix: str, store: Store, another: Store, tmp_path: Path
) -> None:
    version = commit(store, b"one")
    point(store, "x", version)
    with (
        Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy,
        Seaweed(proxy.endpoint).store(prefix, tmp_path / "behind") as behind,
        proxy.failing(Fault("corrupt", "GET", "files/")),
    ):
        assert not is_there(behind, version)
        behind.set_aside(version)
    assert is_there(another, version)
    assert another.look("x").version == version


def test_a_damaged_name_is_listed_put_aside_and_healed_by_a_move(
    seaweed: Seaweed, prefix: str, store: Store, another: Store
) -> None:
    version, raw = commit(store, b"one"), seaweed.raw(prefix)
    point(store, "x", version)
    obstore.put(raw, "names/x", bytes(obstore.get(raw, "names/x").bytes()).replace(b"put", b"pat"))
    assert list(another.every_name()) == ["x"]
    assert another.look("x") == Pointer("x")
    assert point(another, "x", version).revision == 1
    assert store.look("x").revision == 1
    (page,) = obstore.list(raw, prefix="damaged/")
    assert b'"pat"' in bytes(obstore.get(raw, page[0]["path"]).bytes())
    collect_all(another)
    assert is_there(another, version)  # nobody can tell what the damaged one held


def test_a_name_that_is_damaged_on_its_way_is_not_replaced(
    seaweed: Seaweed, prefix: str, store: Store, tmp_path: Path
) -> None:
    version = commit(store, b"one")
    pointer = point(store, "x", version)
    with (
        Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy,
        Seaweed(proxy.endpoint).store(prefix, tmp_path / "behind") as behind,
        proxy.failing(Fault("corrupt", "GET", "names/")),
    ):
        with pytest.raises(StoreUnavailable, match="it is damaged, or was on its way"):
            behind.look("x")
        with pytest.raises(StoreUnavailable):
            behind.move(Pointer("x"), moved(Pointer("x"), Entry(version, now()), 64))
    assert store.look("x") == pointer


def test_a_commit_that_meets_the_collector_uploads_again(
    store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, touch = commit(store, b"one"), ObjectVersions.touch

    def collected(self: ObjectVersions, version: str) -> bool:
        collect_all(another)
        return touch(self, version)

    monkeypatch.setattr(ObjectVersions, "touch", collected)
    assert commit(store, b"one") == version
    assert is_there(another, version)


def test_a_commit_while_a_collector_decides_keeps_the_version(
    store: Store, another: Store, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, held_versions = commit(store, b"one"), ObjectNames.held_versions
    store.collect(0)

    def meanwhile(self: ObjectNames) -> set[str] | None:
        held = held_versions(self)
        commit(another, b"one")
        return held

    monkeypatch.setattr(ObjectNames, "held_versions", meanwhile)
    store.collect(0)
    assert is_there(opened(), version)


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


def test_what_a_broken_off_upload_left_goes_after_a_day_and_nothing_else(
    seaweed: Seaweed, prefix: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, raw = commit(store, b"one"), seaweed.raw(prefix)
    point(store, "x", version)
    lost = ["files/" + "0" * 64 + "/at/adapter_config.json", f"files/{version}/at/golden.jsonl"]
    for path in lost:
        obstore.put(raw, path, b"{}")

    def left() -> set[str]:
        return {one["path"] for page in obstore.list(raw, "files/") for one in page}

    before = left()
    store.collect(60)
    assert left() == before
    monkeypatch.setattr("app.catalog.object_collecting.SWEEP_S", 0.0)
    monkeypatch.setattr("app.catalog.object_versions.ORPHANED", timedelta(seconds=-5))
    store.collect(60)
    assert left() == before - set(lost)
    assert is_there(store, version)


def test_another_server_collects_once_the_one_that_did_gives_no_sign(
    store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = commit(store, b"one")
    store.collect(0)
    collect_all(another)
    assert is_there(another, version)
    monkeypatch.setattr("app.catalog.object_collecting.ABSENT_S", 0.0)
    collect_all(another)
    assert not is_there(another, version)


def test_a_version_with_files_that_are_not_known_is_a_newer_servers(
    store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        for module in ("app.catalog.store", "app.catalog.object_versions"):
            newer.setattr(f"{module}.ADAPTER_FILES", (*ADAPTER_FILES, "new.json"))
        with store.receiving() as tmp:
            folder = tmp / "adapter"
            folder.mkdir()
            (folder / "new.json").write_text("{}")
            version = content_version(folder, {})
            store.commit(folder, version, {}, {})
        assert is_there(store, version)
    with pytest.raises(StoreUnavailable, match=r"new\.json"):
        another.folder(version)


def test_while_a_name_is_damaged_nothing_is_removed_however_short_it_is(
    seaweed: Seaweed, prefix: str, store: Store, another: Store
) -> None:
    version, raw = commit(store, b"one"), seaweed.raw(prefix)
    point(store, "x", version)
    obstore.put(raw, "names/x", b"gar")
    collect_all(another)
    assert is_there(another, version)


def test_what_is_no_names_object_is_left_alone(seaweed: Seaweed, prefix: str, store: Store) -> None:
    version, raw = commit(store, b"one"), seaweed.raw(prefix)
    point(store, "x", version)
    for path in ("names/backup/ghost", "names/No name"):
        obstore.put(raw, path, b" " * 2_000)
    assert list(store.every_name()) == ["x"]
    commit(store, b"two")
    collect_all(store)
    assert is_there(store, version)


def test_a_move_that_takes_long_holds_its_version_or_is_refused(
    store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = commit(store, b"one")
    monkeypatch.setattr("app.catalog.object_store.SAFE_S", 0.05)
    another.collect(0)
    move = ObjectNames.move

    def late(self: ObjectNames, seen: Pointer, after: Pointer) -> Pointer:
        another.collect(0)
        another.collect(0)
        time.sleep(0.1)
        return move(self, seen, after)

    monkeypatch.setattr(ObjectNames, "move", late)
    with pytest.raises(StoreUnavailable, match="PUT it again"):
        point(store, "x", version)


def test_a_name_never_moves_to_a_version_that_was_removed_since_its_commit(
    store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = point(store, "x", commit(store, b"zero"))
    version = commit(store, b"one")
    collect_all(another)
    monkeypatch.setattr("app.catalog.object_store.SAFE_S", 0.0)
    with pytest.raises(StoreUnavailable, match="PUT it again"):
        point(store, "x", version)
    assert another.look("x") == before


def test_a_manifest_that_nobody_has_written_is_not_believed(
    seaweed: Seaweed, prefix: str, store: Store, another: Store
) -> None:
    version = commit(store, b"one")
    raw = seaweed.raw(prefix)
    written = bytes(obstore.get(raw, f"versions/{version}").bytes())
    assert written.count(b'"alpha": 16') == 1
    obstore.put(raw, f"versions/{version}", written.replace(b'"alpha": 16', b'"alpha": 17'))
    for call in (another.options, another.folder):
        with pytest.raises(StoreUnavailable, match="cannot be read"):
            call(version)


def test_moves_are_told_by_name_until_they_are_too_many_or_the_log_is_another(
    seaweed: Seaweed, prefix: str, store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalog.move_log.KEPT", 4)
    version = commit(store, b"one")
    point(store, "a", version)
    first = another.moves("").epoch
    for told, name in ((0, "b"), (1, "c"), (2, "b")):
        assert len(another.moves(first).names or ()) == told
        point(store, name, version)
    assert another.moves(first).names == {"b", "c"}
    last = another.moves(first).epoch
    point(store, "d", version)  # the log has b, c, b, d
    assert another.moves(first).names is None
    assert another.moves(last).names == {"d"}
    obstore.delete(seaweed.raw(prefix), "epoch")
    assert another.moves(last).names is None
    point(store, "e", version)
    assert another.moves(last).names is None


@pytest.mark.parametrize("place", ["s3:/bucket/prefix", "s4://bucket", "http://bucket", "s3://"])
def test_what_is_no_bucket_is_told_and_makes_no_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnusable), open_store(place, tmp_path / "cache", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_obstore_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for module in ("app.catalog.bucket", "app.catalog.object_store"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(StoreUnusable, match=r"pip install 'bert-lora-server\[object\]'"):
        open_store("s3://bucket", tmp_path, 1).__enter__()


def test_a_bucket_without_tls_has_to_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    with pytest.raises(StoreUnusable, match="AWS_ALLOW_HTTP=true"):
        open_store("s3://bucket", tmp_path, 1).__enter__()


def test_wrong_credentials_are_told_as_such(
    seaweed: Seaweed, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**seaweed.environ, "AWS_SECRET_ACCESS_KEY": "wrong"}.items():
        monkeypatch.setenv(name, value)
    with open_store(f"s3://{BUCKET}/{prefix}", tmp_path, 1) as store:
        with pytest.raises(StoreUnavailable, match="credentials"):
            store.look("x")
        with pytest.raises(StoreUnavailable, match="credentials"):
            store.epoch()
