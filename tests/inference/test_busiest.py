"""The busiest adapters have series of their own; the rest share one."""

from __future__ import annotations

from app.inference.busiest import OTHERS, Busiest


def test_who_comes_to_be_busy_takes_the_place_of_who_is_not() -> None:
    gone: list[str] = []
    busiest = Busiest(2, lambda _: True, gone.append)
    assert [busiest.count(name) for name in ("a", "b", "c")] == ["a", "b", OTHERS]
    assert [busiest.count("c") for _ in range(2)] == [OTHERS, "c"]
    assert len(gone) == 1
    assert busiest.count(gone[0]) == OTHERS


def test_what_was_busy_long_ago_counts_less_and_is_not_forgotten_at_once() -> None:
    busiest = Busiest(1, lambda _: True, lambda _: None)
    for _ in range(1000):
        busiest.count("old")
    labels = [busiest.count("new") for _ in range(600)]
    assert set(labels[:50]) == {OTHERS}
    assert labels[-1] == "new"


def test_who_is_deleted_and_comes_again_is_counted_anew() -> None:
    busiest = Busiest(1, lambda _: True, lambda _: None)
    assert [busiest.count(name) for name in ("a", "b", "b")] == ["a", OTHERS, OTHERS]
    busiest.forget("b")
    assert busiest.count("b") == OTHERS
