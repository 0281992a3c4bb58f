"""What a key allows."""

from __future__ import annotations

import pytest

from app.inference.caller import Caller, Key


def restricted(*adapters: str) -> Caller:
    """A caller whose key may use these only."""
    return Caller(Key("k", b"", admin=False, adapters=adapters))


@pytest.mark.parametrize("name", ["sentiment", "base", "any-other"])
def test_without_a_key_every_adapter_may_be_used(name: str) -> None:
    assert Caller().may_use(name)


@pytest.mark.parametrize(
    ("name", "may"),
    [("team-a", True), ("team-", True), ("tea", False), ("base", True), ("b", False)],
)
def test_a_pattern_allows_what_it_matches_and_the_base(name: str, may: bool) -> None:
    assert restricted("team-*").may_use(name) is may


def test_names_that_a_key_may_not_use_are_not_told() -> None:
    assert restricted("b", "c*").usable(["c1", "a", "b"]) == ["b", "c1"]


def test_a_history_names_the_key_and_never_the_secret() -> None:
    assert restricted().name == "k"
    assert Caller().name is None
