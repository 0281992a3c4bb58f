"""The cache of versions on this machine's disk: what is used least recently goes, and nothing that
may be being read.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.catalog.disk_cache import IN_USE_S, DiskCache

KB = 1_000


def put(cache: DiskCache, tmp: Path, version: str, used_ago_s: float) -> None:
    folder = tmp / f"new-{version}"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(KB))
    (folder / "1_Pooling" / "config.json").write_bytes(bytes(KB))
    used = time.time() - used_ago_s
    place = cache.put(version, folder)
    os.utime(place, (used, used))


def test_what_is_used_least_recently_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 7 * KB + 500)
    for age, version in ((5, "a"), (4, "b"), (3, "c")):
        put(cache, tmp_path, version, age * IN_USE_S)
    assert cache.get("a") is not None  # used now
    put(cache, tmp_path, "d", 2 * IN_USE_S)
    assert [version for version in "abcd" if cache.get(version)] == ["a", "c", "d"]


def test_what_was_used_just_now_stays_whatever_its_size(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", KB)
    for version in "ab":
        put(cache, tmp_path, version, 0)
    assert cache.get("a") is not None
    assert cache.get("b") is not None


def test_of_two_that_bring_the_same_version_the_first_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * KB)
    put(cache, tmp_path, "a", 0)
    again = tmp_path / "again"
    again.mkdir()
    (again / "weights").write_bytes(b"other")
    assert (cache.put("a", again) / "weights").stat().st_size == KB
    with pytest.raises(OSError):
        cache.put("b", tmp_path / "not-there")


def test_what_stands_in_a_versions_place_and_is_no_folder_goes(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * KB)
    (tmp_path / "cache" / "versions" / "a").write_bytes(b"a file")
    (tmp_path / "cache" / "versions" / "b").symlink_to(tmp_path / "nowhere")
    for version in "ab":
        put(cache, tmp_path, version, 0)
        assert cache.get(version) is not None


def test_what_is_dropped_is_not_there(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * KB)
    put(cache, tmp_path, "a", 0)
    cache.drop("a")
    cache.drop("a")
    assert cache.get("a") is None


def test_what_is_known_of_a_version_stands_beside_its_files_and_goes_with_them(
    tmp_path: Path,
) -> None:
    cache = DiskCache(tmp_path / "cache", 7 * KB)
    cache.write("a", "report.json", {"n": 1})  # it is not there
    assert cache.read("a", "report.json") is None
    put(cache, tmp_path, "a", 0)
    cache.write("a", "report.json", {"n": 1})
    cache.write("a", "report.json", {"n": 2})
    assert cache.read("a", "report.json") == {"n": 2}
    place = cache.get("a")
    assert place is not None
    (place / "report.json").write_text('{"n": ')
    assert cache.read("a", "report.json") is None
    cache.drop("a")
    assert cache.read("a", "report.json") is None


def test_where_the_disk_is_full_half_of_it_goes_but_nothing_that_may_be_being_read(
    tmp_path: Path,
) -> None:
    cache = DiskCache(tmp_path / "cache", 1000 * KB)
    for age, version in ((5, "a"), (4, "b"), (3, "c"), (0, "d")):
        put(cache, tmp_path, version, age * IN_USE_S)
    cache.shrink()
    assert [version for version in "abcd" if cache.get(version)] == ["c", "d"]


def test_many_who_find_the_disk_full_at_once_take_half_of_it_once(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1000 * KB)
    for age, version in enumerate("abcd", 2):
        put(cache, tmp_path, version, age * IN_USE_S)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.shrink(), range(8)))
    assert len([version for version in "abcd" if cache.get(version)]) == 2


def test_a_read_only_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path / "cache", 1000 * KB)
    put(cache, tmp_path, "a", 0)

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert cache.get("a") is not None
    assert cache.get("b") is None


@pytest.mark.parametrize("odd", ["[" * 100_000, "{", "[1]", ""])
def test_what_stands_beside_a_version_and_is_no_object_is_none(odd: str, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1000 * KB)
    put(cache, tmp_path, "a", 0)
    place = cache.get("a")
    assert place is not None
    (place / "report.json").write_text(odd)
    assert cache.read("a", "report.json") is None
