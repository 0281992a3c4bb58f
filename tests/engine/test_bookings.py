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


def test_bookings_follow_each_other_at_half_of_the_drain_rate() -> None:
    bookings = Bookings(Clock())
    waits = [bookings.book(i, 100, tokens_per_s=1000, wait_s=0) for i in range(4)]
    assert waits == pytest.approx([0, 0.2, 0.4, 0.6])


def test_who_comes_too_late_has_lost_the_place() -> None:
    clock = Clock()
    bookings = Bookings(clock)
    bookings.book("a", 10, 100, 0)
    clock.now += LATE_S + 1
    assert not bookings.claim("a")


def test_nobody_waits_for_those_who_never_come_again() -> None:
    clock = Clock()
    bookings = Bookings(clock)
    for _ in range(500):
        bookings.book(object(), 100, 1000, 0)
        clock.now += 0.2
    clock.now += 2 * LATE_S
    bookings.book("a", 100, 1000, 0)
    assert bookings.book("b", 100, 1000, 0) < 0.05
