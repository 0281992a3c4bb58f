"""Pointers: how a name moves, what of its history stays, and JSON of older and newer servers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.catalog.pointer import (
    FORMAT,
    Entry,
    NewerPointer,
    Pointer,
    Trial,
    current_index,
    deleted,
    digest_of,
    from_json,
    moved,
    staged,
    to_json,
    valid_name,
)

ONE, TWO, THREE = (digit * 64 for digit in "123")
FULL = Pointer(
    "x",
    TWO,
    7,
    "content",
    (Entry(ONE, "2026-01-01T00:00:00Z", "ann"), Entry(TWO, "2026-01-02T00:00:00Z", how="folder")),
    5.5,
    Trial("canary", ONE, 10.0, "x-user", "2026-01-03T00:00:00Z", "bob"),
)


def put(version: str, how: Any = "put") -> Entry:
    return Entry(version, "2026-01-01T00:00:00Z", how=how)


def signed(members: dict[str, Any]) -> dict[str, Any]:
    """As a server would have written these members."""
    members = {k: v for k, v in members.items() if k != "sha256"}
    return {**members, "sha256": digest_of(members)}


def test_what_is_written_is_read_back_and_has_a_format() -> None:
    for pointer in (FULL, deleted(FULL), moved(Pointer("x"), put(ONE), 1)):
        raw = to_json(pointer)
        assert raw["format"] == FORMAT
        assert from_json("x", raw) == pointer


def test_a_pointer_of_an_older_server_is_read_and_its_way_to_merge_left_out() -> None:
    old = to_json(FULL) | {"merge": "auto"}
    del old["format"]
    assert from_json("x", signed(old)) == FULL
    del old["sha256"], old["tokens_per_s"], old["trial"], old["deleted"]
    assert from_json("x", old) == replace(FULL, tokens_per_s=None, trial=None)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}"),
        ({"owner": "ann"}, "has owner"),
        ({"merge": "auto"}, "has merge"),
        ({"history": [{"version": ONE, "created": "", "how": "clone"}]}, "history.0.how"),
        ({"history": [{"version": ONE, "created": "", "note": "n"}]}, "history.0.note"),
        ({"trial": {"mode": "mirror", "version": ONE, "percent": 1}}, "trial.mode"),
    ],
)
def test_what_a_newer_server_has_written_is_told_and_not_read(
    more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NewerPointer, match=reason):
        from_json("x", signed(to_json(FULL) | more))


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {**to_json(FULL), "version": ONE},
        {**to_json(FULL), "format": FORMAT + 1},
        {k: v for k, v in to_json(FULL).items() if k not in ("sha256", "history")},
        {**{k: v for k, v in to_json(FULL).items() if k != "sha256"}, "tokens_per_s": "abc"},
    ],
)
def test_what_no_server_has_written_is_damaged(raw: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        from_json("x", raw)


def test_a_move_keeps_the_last_versions_and_those_in_use() -> None:
    pointer = Pointer("x")
    for version in (ONE, TWO, THREE):
        pointer = moved(pointer, put(version), keep=2)
    assert [e.version for e in pointer.history] == [TWO, THREE]
    on_trial = replace(pointer, trial=Trial("shadow", TWO, 100))
    after = moved(moved(on_trial, put(ONE), 1), put(THREE), 1)
    assert after.versions == {TWO, THREE}


def test_a_trial_ends_where_its_version_becomes_the_current_one() -> None:
    assert moved(FULL, put(ONE), 64).trial is None
    assert moved(FULL, put(THREE), 64).trial == FULL.trial


def test_staging_holds_a_version_once_and_moves_nothing() -> None:
    pointer = staged(moved(Pointer("x"), put(ONE), 64), put(TWO, "stage"), 64)
    assert pointer.version == ONE
    assert pointer.versions == {ONE, TWO}
    assert staged(pointer, put(TWO, "stage"), 64) == pointer


def test_a_version_is_current_where_it_was_last_pointed_at_and_not_where_it_was_staged() -> None:
    history = (put(ONE), put(TWO), put(ONE, "rollback"), put(ONE, "stage"))
    assert current_index(history, ONE) == 2
    assert current_index(history, THREE) is None


def test_a_name_is_its_folders_until_a_client_puts_something() -> None:
    folder = moved(Pointer("x"), put(ONE, "folder"), 64)
    assert folder.from_folder
    assert not folder.has_clients_changes
    assert moved(folder, put(ONE, "rollback"), 64).from_folder
    assert not moved(folder, put(TWO), 64).from_folder
    assert staged(folder, put(TWO, "stage"), 64).has_clients_changes
    assert replace(folder, tokens_per_s=5.0).has_clients_changes


def test_a_tombstone_remembers_the_revision_and_the_folders_content_alone() -> None:
    assert deleted(FULL) == Pointer("x", None, 7, "content")
    assert deleted(FULL).versions == set()


@pytest.mark.parametrize("name", ["a", "a" * 63, "0.x_y-z", "sst2"])
def test_good_names(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize("name", ["", "base", "a" * 64, "A", ".x", "-x", "a/b", "a\n", "ä", ".."])
def test_bad_names(name: str) -> None:
    assert not valid_name(name)
