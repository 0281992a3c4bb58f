"""Batches within the budget, fair turns, who goes ahead, clients that went away."""

from __future__ import annotations

import threading

import pytest

from app.engine.admission import Admission, Asker, QueueFull
from app.engine.queue import Queue, QueueClosed
from app.engine.request import Request
from app.model.sequence import Sequence
from tests.engine.sequences import request_of, sized


def queue_of(max_tokens: int = 10_000, parts: int = 1) -> Queue:
    return Queue(Admission(max_tokens), parts)


def put(queue: Queue, *sequences: Sequence, source: str | None = None) -> Request:
    request = request_of(list(sequences), Asker(client="client", source=source))
    queue.put(request, list(sequences))
    return request


def batch_of(queue: Queue, budget: int) -> list[Sequence]:
    work = queue.take(budget)
    assert isinstance(work, tuple)
    queue.over()
    return work[0]


def sizes(batch: list[Sequence]) -> list[int]:
    return [len(sequence.ids) for sequence in batch]


def adapters(batch: list[Sequence]) -> list[str]:
    return [sequence.version.digest for sequence in batch]


def test_a_batch_keeps_to_the_budget_and_takes_one_at_least() -> None:
    queue = queue_of()
    put(queue, sized(50), sized(30), sized(30))
    assert sizes(batch_of(queue, 90)) == [50, 30]
    assert sizes(batch_of(queue, 10)) == [30]


def test_a_backlog_is_shared_by_the_threads_that_take() -> None:
    queue = queue_of(parts=2)
    put(queue, *[sized(50) for _ in range(40)])
    assert [sum(sizes(batch_of(queue, 5000))) for _ in range(3)] == [1000, 500, 250]


def test_adapters_take_turns_so_that_a_flood_holds_up_nobody() -> None:
    queue = queue_of()
    put(queue, *[sized(10, "flood") for _ in range(100)])
    put(queue, sized(10, "other"))
    assert adapters(batch_of(queue, 40)) == ["flood", "other", "flood", "flood"]


def test_bulk_stands_back_behind_interactive_requests() -> None:
    queue = queue_of()
    bulk = [sized(10, "bulk") for _ in range(50)]
    queue.put(request_of(bulk, Asker(bulk=True)), bulk)
    put(queue, *[sized(10, "now") for _ in range(50)])
    assert 4 <= adapters(batch_of(queue, 250)).count("bulk") <= 6


def test_a_short_one_goes_ahead_of_a_running_flood_but_the_flood_itself_does_not() -> None:
    queue = queue_of()
    put(queue, *[sized(10, "flood") for _ in range(100)], source="flood")
    running = batch_of(queue, 500)
    assert queue.take_ahead(running, 256) is None
    put(queue, sized(5, "other"), source="other")
    ahead = queue.take_ahead(running, 256)
    assert isinstance(ahead, list)
    assert sizes(ahead) == [5]
    assert queue.take_ahead(running, 256) is None
    queue.put_call(lambda: None)
    assert callable(queue.take_ahead(running, 256))


def test_what_is_refused_does_not_wait() -> None:
    queue = queue_of(100)
    put(queue, sized(100, "first"))
    with pytest.raises(QueueFull):
        put(queue, sized(1), sized(1))
    assert adapters(batch_of(queue, 1000)) == ["first"]


def test_sequences_of_a_client_that_went_away_make_room_at_once_and_are_dropped() -> None:
    admission = Admission(1000)
    queue = Queue(admission)
    gone = put(queue, sized(10), sized(10))
    put(queue, sized(7))
    queue.cancel(gone)
    assert admission.tokens == 7
    assert sizes(batch_of(queue, 1000)) == [7]
    assert admission.tokens == 0


def taking(queue: Queue) -> tuple[threading.Thread, list[object]]:
    """A spare thread that takes once, and what it got."""
    got: list[object] = []
    spare = threading.Thread(target=lambda: got.append(queue.take(1000, spare=True)), daemon=True)
    spare.start()
    return spare, got


def test_a_spare_thread_takes_only_beside_another() -> None:
    queue = queue_of(parts=2)
    spare, got = taking(queue)
    put(queue, sized(5))
    spare.join(0.2)
    assert not got
    _, alone = queue.take(1000)  # type: ignore[misc]
    assert alone
    spare.join(0.2)
    assert not got
    put(queue, sized(7))
    spare.join(10)
    assert sizes(got[0][0]) == [7]  # type: ignore[index]
    assert not got[0][1]  # type: ignore[index]


def test_a_spare_thread_that_woke_too_early_takes_what_the_first_one_leaves() -> None:
    queue = queue_of(parts=2)
    spare, got = taking(queue)
    put(queue, sized(500), sized(400))
    spare.join(0.2)  # it has seen that nothing runs, and waits again
    batch, _ = queue.take(1000)  # type: ignore[misc]
    assert sizes(batch) == [500]
    spare.join(10)
    assert sizes(got[0][0]) == [400]  # type: ignore[index]


def test_a_call_runs_between_batches_and_close_ends_the_taking() -> None:
    queue = queue_of()
    put(queue, sized(3))
    queue.put_call(lambda: None)
    assert callable(queue.take(10))
    assert isinstance(queue.take(10), tuple)
    queue.close()
    assert queue.take(10) is None


def test_a_light_one_is_not_made_to_wait_for_the_end_of_a_floods_batch() -> None:
    queue = queue_of(100_000)
    put(queue, *[sized(10, "flood") for _ in range(500)], source="flood")
    put(queue, sized(10, "light"), source="light")
    put(queue, sized(10, "slight"), source="slight")
    batches = [adapters(batch_of(queue, 1000)) for _ in range(3)]
    assert [sorted(set(batch)) for batch in batches] == [["flood"], ["light", "slight"], ["flood"]]
    assert len(batches[2]) == 100


def test_a_queue_that_is_closed_refuses_what_would_wait_for_ever() -> None:
    queue = queue_of()
    queue.close()
    with pytest.raises(QueueClosed):
        put(queue, sized(3))
    with pytest.raises(QueueClosed):
        queue.put_call(lambda: None)
