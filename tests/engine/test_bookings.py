"""Refused requests that come again at their time are let in, and only then."""

from __future__ import annotations

import pytest

from app.engine.bookings import LATE_S, Bookings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_booking_is_good_once_and_at_its_time() -> None:
    clock = Clock()
    bookings = Bookings(clock)
    wait_s = bookings.book("a", 100, tokens_per_s=100, wait_s=0.5)
    assert wait_s == 0.5
    assert not bookings.claim("a")
    clock.now += wait_s
    assert not bookings.claim("b")
    assert bookings.claim("a")
    assert not bookings.claim("a")


def test_bookings_follow_each_other_slower_than_the_queue_drains() -> None:
    bookings = Bookings(Clock())
    waits = [bookings.book(i, 75, tokens_per_s=1000, wait_s=0) for i in range(4)]
    assert waits == pytest.approx([0, 0.1, 0.2, 0.3])


def test_who_comes_too_late_has_lost_the_place() -> None:
    clock = Clock()
    bookings = Bookings(clock)
    bookings.book("a", 10, 100, 0)
    clock.now += LATE_S + 1
    assert not bookings.claim("a")


def test_once_there_is_room_nobody_waits_for_those_who_never_came() -> None:
    bookings = Bookings(Clock())
    for i in range(500):
        bookings.book(i, 100, 1000, 0)
    assert bookings.book("a", 100, 1000, 0) > 60
    bookings.calm()
    assert bookings.book("b", 100, 1000, 0) == 0


def test_one_request_may_be_due_sooner_than_when_it_was_refused_before() -> None:
    clock = Clock()
    bookings = Bookings(clock)
    bookings.book("a", 10, 100, wait_s=60)
    bookings.calm()
    wait_s = bookings.book("a", 10, 100, wait_s=1)
    clock.now += wait_s
    assert bookings.claim("a")
    assert not bookings.claim("a")  # the other one is not due yet
    clock.now += 59
    assert bookings.claim("a")
