"""Versions within a memory budget: what is used least recently falls out."""

from __future__ import annotations

from app.catalog.residents import Residents
from tests.catalog.versions import BYTES, digest_for, version_for

ONE, TWO, THREE = map(digest_for, (1, 2, 3))


def residents(room: int) -> Residents:
    """With room for so many versions, and two of them put."""
    made = Residents(room * BYTES)
    for i in (1, 2):
        made.put(version_for(i))
    return made


def test_what_is_used_least_recently_falls_out() -> None:
    memory = residents(room=2)
    assert memory.use(ONE) is not None
    memory.put(version_for(3))
    assert (ONE in memory, TWO in memory, THREE in memory) == (True, False, True)
    assert memory.bytes == 2 * BYTES


def test_the_version_put_last_stays_however_small_the_budget() -> None:
    memory = residents(room=0)
    assert (len(memory), TWO in memory) == (1, True)


def test_a_version_put_twice_counts_once() -> None:
    memory = residents(room=3)
    memory.put(version_for(1))
    assert (len(memory), memory.bytes) == (2, 2 * BYTES)
    assert memory.has_room(BYTES)
    assert not memory.has_room(BYTES + 1)


def test_hits_and_misses_are_requests_and_nothing_else() -> None:
    memory = residents(room=2)
    memory.use(ONE)
    memory.use(THREE)
    memory.get(ONE)
    memory.get(THREE)
    assert (memory.hits, memory.misses) == (1, 1)


def test_what_is_dropped_gives_its_bytes_back_once() -> None:
    memory = residents(room=2)
    memory.drop(ONE)
    memory.drop(ONE)
    assert (len(memory), memory.bytes) == (1, BYTES)
