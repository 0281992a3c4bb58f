"""Rate limits by tokens: who is in debt waits for as long as it has overdrawn."""

from __future__ import annotations

import pytest

from app.inference.quota import Charge, QuotaExceeded, Quotas


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def charge(tokens: int, rate: float | None = 10, whose: str = "a") -> Charge:
    """So many tokens of one owner."""
    return Charge(whose, rate, tokens)


def test_no_request_is_too_large_to_be_let_in() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge([charge(1000)])
    clock.now = 98.9
    with pytest.raises(QuotaExceeded):
        quotas.charge([charge(1)])
    clock.now = 99.2
    quotas.charge([charge(1)])


def test_the_wait_is_the_time_until_the_debt_is_paid() -> None:
    quotas = Quotas(Clock())
    quotas.charge([charge(60)])
    with pytest.raises(QuotaExceeded) as refused:
        quotas.charge([charge(1)])
    assert refused.value.retry_after_s == pytest.approx(5.0)


def test_where_one_of_several_is_in_debt_none_is_charged() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge([charge(60, whose="poor")])
    for _ in range(5):
        with pytest.raises(QuotaExceeded):
            quotas.charge([charge(100, whose="rich"), charge(1, whose="poor")])
    quotas.charge([charge(1, whose="rich")])


def test_what_is_given_back_can_be_used_again() -> None:
    quotas = Quotas(Clock())
    quotas.charge([charge(11)])
    quotas.give_back([charge(11)])
    quotas.charge([charge(1)])


def test_who_has_no_limit_is_never_refused() -> None:
    quotas = Quotas(Clock())
    for _ in range(100):
        quotas.charge([charge(10**9, rate=None)])
