"""The busiest adapters have series of their own; the rest share one."""

from __future__ import annotations

from app.inference.busiest import OTHERS, Busiest


def test_who_comes_to_be_busy_takes_the_place_of_who_is_not() -> None:
    gone: list[str] = []
    busiest = Busiest(2, lambda _: True, gone.append)
    assert [busiest.label(name) for name in ("a", "b", "c")] == ["a", "b", OTHERS]
    assert [busiest.label("c") for _ in range(2)] == [OTHERS, "c"]
    assert len(gone) == 1
    assert busiest.label(gone[0]) == OTHERS


def test_what_was_busy_long_ago_counts_less() -> None:
    busiest = Busiest(1, lambda _: True, lambda _: None)
    for _ in range(150):
        busiest.label("old")
    labels = [busiest.label("new") for _ in range(400)]
    assert labels[0] == OTHERS
    assert labels[-1] == "new"
