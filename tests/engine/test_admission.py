"""The door's limit: all of a request or nothing, even parts for sources, times that are kept."""

from __future__ import annotations

import pytest

from app.engine.admission import AT_FIRST_TOKENS_PER_S, Admission, Asker, QueueFull

ANYONE = Asker()


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def draining(tokens_per_s: float, clock: Clock, max_tokens: int | None = 100) -> Admission:
    """An admission that has measured one second of that rate."""
    admission = Admission(max_tokens, floor_tokens=10, clock=clock)
    clock.now += 1
    admission.measure(int(tokens_per_s), clock.now - 1)
    return admission


def test_all_of_a_request_is_admitted_or_nothing() -> None:
    admission = Admission(100)
    admission.admit(ANYONE, 500)  # an idle queue takes any one request
    with pytest.raises(QueueFull) as full:
        admission.admit(ANYONE, 2)
    assert full.value.retry_after_s > 0
    assert admission.tokens == 500


def test_what_leaves_makes_room() -> None:
    admission = Admission(100)
    admission.admit(ANYONE, 100)
    admission.leave(None, 60)
    admission.admit(ANYONE, 60)
    assert admission.tokens == admission.tokens_of(None) == 100


def test_the_wait_comes_from_the_measured_drain_rate() -> None:
    clock = Clock()
    admission = draining(1000, clock)
    admission.admit(ANYONE, 100)
    with pytest.raises(QueueFull) as full:
        admission.admit(ANYONE, 50)
    assert full.value.retry_after_s == pytest.approx(0.05)


def test_until_something_has_run_a_rate_is_assumed() -> None:
    assert Admission(100).tokens_per_s == AT_FIRST_TOKENS_PER_S


def test_the_drain_rate_forgets_what_is_long_past_and_counts_threads_at_one_time_once() -> None:
    clock = Clock()
    admission = draining(1000, clock)
    for _ in range(20):
        clock.now += 1
        admission.measure(50, clock.now - 1)
        admission.measure(50, clock.now - 1)  # another thread, in the same second
    assert admission.tokens_per_s == pytest.approx(100, rel=0.01)


def test_unset_the_limit_is_what_drains_in_some_seconds() -> None:
    assert draining(1000, Clock(), max_tokens=None).max_tokens == 5000
    assert draining(1, Clock(), max_tokens=None).max_tokens == 10  # the floor


def test_who_comes_again_at_its_time_is_let_in_above_the_limit() -> None:
    clock = Clock()
    admission = draining(100, clock)
    admission.admit(ANYONE, 100)
    with pytest.raises(QueueFull) as full:
        admission.admit(Asker(key="mine"), 10)
    assert not admission.claim("another")
    assert not admission.claim("mine")
    clock.now += full.value.retry_after_s
    assert admission.claim("mine")
    admission.admit(Asker(key="mine", booked=True), 10)


def test_a_booking_that_nobody_claimed_at_the_door_is_claimed_on_the_way_in() -> None:
    clock = Clock()
    admission = draining(100, clock)
    admission.admit(ANYONE, 100)
    refusal = admission.refuse("mine")
    clock.now += refusal.retry_after_s
    admission.admit(Asker(key="mine"), 10)
    with pytest.raises(QueueFull):
        admission.admit(Asker(key="mine"), 10)  # used up


def test_a_booking_lets_in_up_to_twice_the_limit_and_no_more() -> None:
    admission = Admission(100)
    admission.admit(ANYONE, 100)
    admission.admit(Asker(booked=True), 100)
    with pytest.raises(QueueFull):
        admission.admit(Asker(booked=True), 1)


def test_refusals_are_told_different_times_one_after_another() -> None:
    admission = draining(100, Clock())
    admission.admit(ANYONE, 100)
    waits = [admission.refuse(key).retry_after_s for key in range(5)]
    assert waits == sorted(set(waits))


def test_once_the_queue_is_half_empty_the_line_of_bookings_is_forgotten() -> None:
    admission = draining(100, Clock())
    admission.admit(ANYONE, 100)
    for key in range(50):
        admission.refuse(key)
    admission.leave(None, 100)
    admission.admit(ANYONE, 10)
    admission.admit(ANYONE, 90)
    assert admission.refuse("new").retry_after_s < 1


def test_a_flood_leaves_others_their_part_of_the_places() -> None:
    admission = Admission(100)
    flood, other = Asker(source="flood", key=1), Asker(source="other", key=2)
    admission.admit(flood, 100)
    assert admission.sheds("flood")
    assert not admission.sheds("other")
    admission.admit(other, 40)
    with pytest.raises(QueueFull):
        admission.admit(other, 20)  # over a half
    with pytest.raises(QueueFull):
        admission.admit(flood, 1)
    admission.leave("flood", 100)
    admission.leave("other", 40)
    assert admission.tokens == 0
    assert not admission.sheds("flood")


def test_the_door_shuts_a_request_of_usual_size_before_the_queue_is_full() -> None:
    admission = Admission(1000)
    asker = Asker(source="one")
    admission.admit(asker, 950)
    assert admission.sheds("one")  # of some 100 tokens, as the last requests
    admission.leave("one", 200)
    assert not admission.sheds("one")
