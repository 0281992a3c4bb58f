"""A request is over once: with its last row, or with its first error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from app.engine.admission import Asker
from app.engine.request import Request


def request_of(count: int) -> Request:
    return Request(lambda: None, Asker(), count)


def test_a_request_is_over_with_its_last_row() -> None:
    request = request_of(3)
    assert [request.finish_one(at) for at in (1.0, 2.0, 3.0)] == [False, False, True]
    assert request.finished_at == 3.0


def test_only_the_first_error_ends_it_and_is_the_one_that_it_keeps() -> None:
    request, first = request_of(2), ValueError("first")
    assert request.fail(first)
    assert not request.fail(ValueError("second"))
    assert request.error is first


def test_of_rows_that_threads_finish_at_once_exactly_one_is_the_last() -> None:
    request = request_of(1000)
    with ThreadPoolExecutor(8) as pool:
        lasts = list(pool.map(request.finish_one, map(float, range(1000))))
    assert lasts.count(True) == 1
    assert request.remaining == 0
