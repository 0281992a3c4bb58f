"""What dominates the traffic is merged, and unmerged when it no longer does; wavering changes nothing."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from app.engine.automerge import AutoMerge, Credits


def merged_after(traffic: list[dict[str, int]]) -> list[set[str]]:
    """What is merged after each second of this traffic."""
    credits, merged, found = Credits(), set[str](), []
    for served in traffic:
        change = credits.tick(served, merged)
        merged = (merged - set(change.unmerge)) | set(change.merge)
        found.append(set(merged))
    return found


def test_who_dominates_is_merged_once_it_has_earned_it() -> None:
    found = merged_after([{"a": 5000, "b": 500}] * 10)
    assert found[0] == set()
    assert found[-1] == {"a"}


def test_little_traffic_earns_no_copy_however_much_one_adapter_dominates_it() -> None:
    assert merged_after([{"a": 200}] * 60)[-1] == set()


def test_the_copy_goes_when_the_traffic_moves_on_and_the_new_one_gets_it() -> None:
    found = merged_after([{"a": 5000}] * 10 + [{"b": 5000}] * 30)
    assert found[9] == {"a"}
    assert found[-1] == {"b"}


def test_traffic_that_wavers_does_not_merge_back_and_forth() -> None:
    found = merged_after([{"a": 5000}] * 10 + [{"a": 2500, "b": 4500}, {"a": 4500, "b": 2500}] * 20)
    assert all("a" in merged for merged in found[9:])
    assert sum(one != other for one, other in pairwise(found[9:])) <= 1  # b may join


def test_only_who_may_be_merged_is_and_one_that_fails_is_left_alone() -> None:
    done: list[str] = []

    async def merge(name: str) -> None:
        if name == "full":
            raise MemoryError
        done.append(name)

    async def run(name: str) -> None:
        auto = AutoMerge(lambda n: n != "off", done.__contains__, merge, merge)
        for _ in range(10):
            auto.served[name] += 5000
            await auto.tick()

    for name in ("off", "full", "a"):
        asyncio.run(run(name))
    assert done == ["a"]
