"""Admission by tokens, fair turns, dropped clients."""

from __future__ import annotations

import pytest

from app.engine.queue import Queue, QueueFull, Ticket, Waiting
from app.model.batch import Want

WANT = Want("embedding")


class Version:
    """Stands for an adapter version: only its identity matters here."""


def waiting(size: int, version: object = None, ticket: Ticket | None = None) -> Waiting:
    ticket = ticket or Ticket(lambda: None, [None], 1)
    return Waiting([1] * size, [0] * size, WANT, version, ticket, 0)  # type: ignore[arg-type]


def test_a_batch_keeps_to_the_budget_and_takes_one_at_least() -> None:
    queue = Queue(1000)
    queue.put([waiting(50), waiting(30), waiting(30)])
    assert [len(w.ids) for w in queue.take(90) or []] == [50, 30]  # type: ignore[union-attr]
    assert [len(w.ids) for w in queue.take(10) or []] == [30]  # type: ignore[union-attr]


def test_adapters_take_turns_so_that_a_flood_holds_up_nobody() -> None:
    queue = Queue(10_000)
    flood, other = Version(), Version()
    queue.put([waiting(10, flood) for _ in range(100)])
    queue.put([waiting(10, other)])
    first = queue.take(40)
    assert isinstance(first, list)
    assert [w.version for w in first] == [flood, other, flood, flood]


def test_all_of_a_request_is_admitted_or_nothing() -> None:
    queue = Queue(100)
    queue.put([waiting(500)])  # an idle queue takes any one request
    with pytest.raises(QueueFull) as full:
        queue.put([waiting(1), waiting(1)])
    assert full.value.retry_after_s > 0
    assert queue.tokens == 500


def test_the_wait_is_told_from_the_measured_drain_rate() -> None:
    queue = Queue(100)
    queue.drained(tokens=1000, seconds=1)
    queue.put([waiting(100)])
    with pytest.raises(QueueFull) as full:
        queue.put([waiting(50)])
    assert full.value.retry_after_s == pytest.approx(0.05)


def test_sequences_of_a_client_that_went_away_are_dropped() -> None:
    queue = Queue(1000)
    gone = Ticket(lambda: None, [None, None], 2)
    queue.put([waiting(10, ticket=gone), waiting(10, ticket=gone), waiting(7)])
    gone.cancelled = True
    taken = queue.take(1000)
    assert isinstance(taken, list)
    assert [len(w.ids) for w in taken] == [7]
    assert queue.tokens == 0


def test_a_call_runs_between_batches_and_close_ends_the_taking() -> None:
    queue = Queue(1000)
    queue.put([waiting(3)])
    queue.put_call(lambda: None)
    assert callable(queue.take(10))
    assert isinstance(queue.take(10), list)
    queue.close()
    assert queue.take(10) is None
