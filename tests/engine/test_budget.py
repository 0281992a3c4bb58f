"""A batch's budget: less where memory is short, never less than one sequence, and back again."""

from __future__ import annotations

from app.engine.budget import GROW_AFTER, Budget


def test_it_halves_but_never_below_one_sequence() -> None:
    budget = Budget(1000, 300)
    sizes = []
    for tokens in (1000, 500, 250, 1):
        budget.short(tokens)
        sizes.append(budget.tokens)
    assert sizes == [500, 300, 300, 300]


def test_two_halves_that_fail_alike_halve_it_once_and_a_long_batch_before_never_raises_it() -> None:
    budget = Budget(1000, 10)
    for tokens in (1000, 500, 500, 900):
        budget.short(tokens)
    assert budget.tokens == 250


def test_it_is_what_it_was_again_after_enough_batches_and_no_more_than_that() -> None:
    budget = Budget(1000, 100)
    budget.short(budget.tokens)
    for _ in range(GROW_AFTER - 1):
        budget.enough(250)
    assert budget.tokens == 500
    budget.enough(250)
    assert budget.tokens == 1000
    for _ in range(GROW_AFTER):
        budget.enough(1000)
    assert budget.tokens == 1000


def test_short_batches_and_those_before_it_halved_again_do_not_count() -> None:
    budget = Budget(1000, 100)
    budget.short(budget.tokens)
    for _ in range(GROW_AFTER):
        budget.enough(249)
    for _ in range(GROW_AFTER - 1):
        budget.enough(500)
    budget.short(500)
    budget.enough(250)
    assert budget.tokens == 250
