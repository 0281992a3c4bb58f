"""Names -> versions: who is served, who is merged, which old versions stay in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.catalog.pointer import Entry
from app.catalog.registry import (
    OLD_VERSIONS,
    Registry,
    UnknownAdapter,
    UnknownVersion,
    find_version,
    version_before,
)
from app.catalog.residents import Residents
from tests.catalog.versions import digest_for, name_for, version_for

HISTORY = tuple(
    Entry(digest_for(i), "2026-01-01T00:00:00Z", how=how)  # type: ignore[arg-type]
    for i, how in [(1, "put"), (2, "put"), (3, "stage"), (2, "rollback")]
)


@pytest.fixture
def registry() -> Registry:
    return Registry(Residents(1 << 30))


def test_an_unknown_name_is_told_with_the_nearest_that_the_key_may_see(registry: Registry) -> None:
    registry.point(name_for("sentiment", 1))
    with pytest.raises(UnknownAdapter, match="did you mean sentiment") as refused:
        registry.get("sentimant")
    assert refused.value.among(lambda _: False).nearest == []


def test_a_broken_name_is_told_with_the_reason_until_it_points_again(registry: Registry) -> None:
    registry.broken["a"] = "its files are lost"
    with pytest.raises(UnknownAdapter, match="a is there but not served: its files are lost"):
        registry.get("a")
    registry.point(name_for("a", 1))
    assert registry.get("a").digest == digest_for(1)
    assert registry.not_served == {}


def test_a_merged_copy_goes_with_its_version_and_not_with_a_trial(registry: Registry) -> None:
    registry.point(name_for("a", 1))
    registry.merged["a"] = replace(version_for(1), merged_bytes=5)
    registry.point(name_for("a", 1, trial=2))
    assert registry.merged_bytes == 5
    assert registry.ready(registry.get("a")) is registry.merged["a"]
    registry.point(name_for("a", 2))
    assert registry.merged_bytes == 0


def test_a_version_stays_in_memory_while_any_name_or_trial_uses_it(registry: Registry) -> None:
    registry.point(name_for("a", 1, trial=2))
    registry.point(name_for("b", 1))
    for i in range(1, 3):
        registry.residents.put(version_for(i))
    registry.remove("a")
    for i in range(3, 3 + OLD_VERSIONS):
        version = replace(version_for(3), digest=f"{i:064x}")
        registry.residents.put(version)
        registry.keep_old(version.digest)
    assert digest_for(1) in registry.residents
    assert digest_for(2) not in registry.residents
    assert len(registry.residents) == 1 + OLD_VERSIONS


def test_who_is_told_of_removals_hears_only_of_names_that_were_served(registry: Registry) -> None:
    gone: list[str] = []
    registry.on_remove = gone.append
    registry.point(name_for("a", 1))
    registry.remove("a")
    registry.remove("a")
    registry.remove("never")
    assert gone == ["a"]


def test_a_names_time_is_that_of_its_pointer() -> None:
    name = name_for("a", 1)
    assert (name.created, name.created_unix) == ("2026-01-01T00:00:00Z", 1767225600)


def test_a_version_is_given_by_12_digits_that_begin_one_alone() -> None:
    assert find_version("a", HISTORY, digest_for(2)[:12]) == digest_for(2)
    for prefix in (digest_for(2)[:11], digest_for(7)[:12], ""):
        with pytest.raises(UnknownVersion):
            find_version("a", HISTORY, prefix)


def test_the_version_before_is_one_that_was_pointed_at_and_is_another() -> None:
    assert version_before("a", HISTORY, digest_for(2)) == digest_for(1)
    with pytest.raises(UnknownVersion):
        version_before("a", HISTORY, digest_for(1))
