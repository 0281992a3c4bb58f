"""How many cores a batch gets: all of them only alone, once the spare threads are quiet."""

from __future__ import annotations

from app.engine.width import QUIET_S, Width
from tests.engine.test_admission import Clock


def test_one_batch_after_another_alone_has_all_cores_from_the_second_on() -> None:
    clock = Clock()
    width = Width(4, 2, clock)
    widths = []
    for _ in range(3):
        clock.now += 1
        widths.append(width.begin(spare=False, alone=True))
    assert widths == [2, 4, 4]


def test_beside_another_batch_and_on_a_spare_thread_it_has_its_threads_share() -> None:
    clock = Clock()
    width = Width(4, 2, clock)
    width.begin(spare=False, alone=True)
    clock.now += 1
    assert width.begin(spare=True, alone=True) == 2
    assert width.begin(spare=False, alone=False) == 2


def test_after_a_spare_thread_worked_it_waits_until_that_one_is_quiet() -> None:
    clock = Clock()
    width = Width(2, 2, clock)
    width.begin(spare=False, alone=False)
    width.end(spare=True)
    clock.now += QUIET_S / 2
    assert width.begin(spare=False, alone=True) == 1
    clock.now += QUIET_S
    assert width.begin(spare=False, alone=True) == 2


def test_right_after_a_backlog_of_long_batches_it_stays_narrow_once() -> None:
    clock = Clock()
    width = Width(2, 2, clock)
    width.begin(spare=False, alone=False)
    clock.now += 1
    width.end(spare=True)  # while the first thread's long batch ran
    clock.now += 1
    assert width.begin(spare=False, alone=True) == 1
    clock.now += 1
    assert width.begin(spare=False, alone=True) == 2


def test_the_first_threads_own_end_does_not_make_it_narrow() -> None:
    clock = Clock()
    width = Width(2, 2, clock)
    width.begin(spare=False, alone=True)
    clock.now += 1
    width.end(spare=False)
    assert width.begin(spare=False, alone=True) == 2


def test_every_thread_has_a_core_at_least() -> None:
    assert Width(1, 4, Clock()).begin(spare=True, alone=False) == 1
