"""The names nearest to a misspelled one, out of few and out of very many."""

from __future__ import annotations

import random
from collections.abc import Iterable

from app.catalog.nearest import Nearest


def test_of_few_names_the_nearest_are_those_that_difflib_finds() -> None:
    nearest, served = Nearest(), {"sentiment", "banking77", "clinc150"}
    for name in served:
        nearest.add(name)
    assert nearest.to("sentimant", served) == ["sentiment"]
    assert nearest.to("clinc_150", served) == ["clinc150"]
    assert nearest.to("weather", served) == []


def nearest_of(names: Iterable[str]) -> Nearest:
    nearest = Nearest()
    for name in names:
        nearest.add(name)
    return nearest


def test_up_to_three_are_told_and_the_best_is_the_first() -> None:
    names = ["banking", "banking7", "banking77", "banking778", "weather"]
    assert nearest_of(names).to("banking77x", set(names)) == ["banking77", "banking778", "banking7"]


def test_the_first_names_in_order_are_found_among_many() -> None:
    names = [f"name{i:02}" for i in range(30)]
    assert nearest_of(names).to("name02x", set(names))[0] == "name02"


def test_a_typo_in_the_middle_is_found_among_names_that_begin_or_end_alike() -> None:
    crowd = [f"aa-m{x}" for x in "abcd"] + [f"{x}m-zz" for x in "abcd"]
    names = [*crowd, "aa-m-zz"]
    assert nearest_of(names).to("aa-n-zz", set(names))[0] == "aa-m-zz"


def test_what_was_there_before_a_great_many_came_is_found_among_them() -> None:
    names = [f"one{i}" for i in range(1_001)]
    nearest = nearest_of(names)
    nearest.settle()
    more = [f"two{i}" for i in range(1_001)]
    for name in more:
        nearest.add(name)
    assert "one500" in nearest.to("one500x", {*names, *more})


def test_of_an_endless_name_the_beginning_is_compared() -> None:
    name = "a" * 120
    assert nearest_of([name]).to(name + "b" * 10_000, {name}) == [name]


def test_a_name_that_is_gone_is_told_to_nobody() -> None:
    nearest = Nearest()
    nearest.add("sentiment")
    assert nearest.to("sentimant", set()) == []


def test_of_100_000_names_a_typo_anywhere_finds_its_own_and_looks_at_few() -> None:
    rng = random.Random(0)
    served = {f"team{rng.randrange(10**6)}-task{rng.randrange(10**6)}-v{i}" for i in range(100_000)}
    nearest = Nearest()
    for name in sorted(served):
        nearest.add(name)
    asked = rng.sample(sorted(served), 50)
    looked = 0

    class Served(set[str]):
        def __contains__(self, name: object) -> bool:
            nonlocal looked
            looked += 1
            return set.__contains__(self, name)

    counting = Served(served)
    for name in asked:
        at = rng.randrange(len(name))
        typo = f"{name[:at]}x{name[at:]}"
        assert name in nearest.to(typo, counting)
    assert looked <= 64 * len(asked)


def test_names_that_come_and_go_are_dropped_in_the_end() -> None:
    nearest, served = Nearest(), {"kept"}
    nearest.add("kept")
    for i in range(5_000):
        nearest.add(f"brief{i}")
        nearest.forget(served, len(served))
    assert len(nearest._forwards) + len(nearest._new) < 3_000
    assert nearest.to("kapt", served) == ["kept"]
