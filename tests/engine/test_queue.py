"""Admission by tokens, fair turns, who goes ahead, dropped clients."""

from __future__ import annotations

import threading
import time

import pytest

from app.engine.queue import Asker, Queue, QueueFull, Ticket, Waiting
from app.model.batch import Want

WANT = Want("embedding")
ANYONE = Asker()


def waiting(size: int, adapter: str = "", ticket: Ticket | None = None) -> Waiting:
    ticket = ticket or Ticket(lambda: None, [None], 1)
    line = (False, adapter, "client")
    return Waiting([1] * size, [0] * size, WANT, None, ticket, 0, line)


def taken(queue: Queue, budget: int) -> list[Waiting]:
    work = queue.take(budget)
    assert isinstance(work, tuple)
    queue.over()
    return work[0]


def sizes(found: list[Waiting]) -> list[int]:
    return [len(w.ids) for w in found]


def test_a_batch_keeps_to_the_budget_and_takes_one_at_least() -> None:
    queue = Queue(1000)
    queue.put([waiting(50), waiting(30), waiting(30)], ANYONE)
    assert sizes(taken(queue, 90)) == [50, 30]
    assert sizes(taken(queue, 10)) == [30]


def test_a_backlog_is_shared_by_the_threads_that_take() -> None:
    queue = Queue(10_000, takers=2)
    queue.put([waiting(50) for _ in range(40)], ANYONE)
    assert [sum(sizes(taken(queue, 5000))) for _ in range(3)] == [1000, 500, 250]


def test_adapters_take_turns_so_that_a_flood_holds_up_nobody() -> None:
    queue = Queue(10_000)
    queue.put([waiting(10, "flood") for _ in range(100)], ANYONE)
    queue.put([waiting(10, "other")], ANYONE)
    assert [w.line[1] for w in taken(queue, 40)] == ["flood", "other", "flood", "flood"]


def test_a_short_one_goes_ahead_of_a_running_flood_but_the_flood_itself_does_not() -> None:
    queue = Queue(10_000)
    queue.put([waiting(10, "flood") for _ in range(100)], Asker(source="flood"))
    running = taken(queue, 500)
    assert queue.take_ahead(running, 256) is None
    queue.put([waiting(5, "other")], Asker(source="other"))
    ahead = queue.take_ahead(running, 256)
    assert isinstance(ahead, list)
    assert sizes(ahead) == [5]
    assert queue.take_ahead(running, 256) is None
    queue.put_call(lambda: None)
    assert callable(queue.take_ahead(running, 256))


def test_all_of_a_request_is_admitted_or_nothing() -> None:
    queue = Queue(100)
    queue.put([waiting(500)], ANYONE)  # an idle queue takes any one request
    with pytest.raises(QueueFull) as full:
        queue.put([waiting(1), waiting(1)], ANYONE)
    assert full.value.retry_after_s > 0
    assert queue.tokens == 500


def test_the_wait_is_told_from_the_measured_drain_rate() -> None:
    queue = Queue(100)
    queue.drained(1000, time.perf_counter() - 1)
    queue.put([waiting(100)], ANYONE)
    with pytest.raises(QueueFull) as full:
        queue.put([waiting(50)], ANYONE)
    assert full.value.retry_after_s == pytest.approx(0.05, rel=0.05)


def test_who_comes_again_at_its_time_is_let_in_above_the_limit() -> None:
    queue = Queue(100)
    queue.put([waiting(100)], ANYONE)
    with pytest.raises(QueueFull) as full:
        queue.put([waiting(10)], Asker(key="mine"))
    assert not queue.claim("another")
    time.sleep(full.value.retry_after_s)
    assert queue.claim("mine")
    queue.put([waiting(10)], Asker(key="mine", booked=True))


def test_unset_the_limit_is_what_drains_in_some_seconds() -> None:
    queue = Queue(None, max_s=5, floor_tokens=10)
    queue.drained(1000, time.perf_counter() - 1)
    assert queue.max_tokens == pytest.approx(5000, rel=0.05)


def test_sequences_of_a_client_that_went_away_make_room_at_once_and_are_dropped() -> None:
    queue = Queue(1000)
    gone = Ticket(lambda: None, [None, None], 2)
    queue.put([waiting(10, ticket=gone), waiting(10, ticket=gone), waiting(7)], ANYONE)
    queue.cancel(gone)
    assert queue.tokens == 7
    assert sizes(taken(queue, 1000)) == [7]
    assert queue.tokens == 0


def test_a_spare_thread_takes_only_beside_another() -> None:
    queue = Queue(1000, takers=2)
    found: list[object] = []
    spare = threading.Thread(target=lambda: found.append(queue.take(1000, spare=True)), daemon=True)
    spare.start()
    queue.put([waiting(5)], ANYONE)
    spare.join(0.2)
    assert not found
    _, alone = queue.take(1000)  # type: ignore[misc]
    assert alone
    spare.join(0.2)
    assert not found
    queue.put([waiting(7)], ANYONE)
    spare.join(10)
    assert sizes(found[0][0]) == [7]  # type: ignore[index]
    assert not found[0][1]  # type: ignore[index]


def test_a_spare_thread_that_woke_too_early_takes_what_the_first_one_leaves() -> None:
    queue = Queue(1000, takers=2)
    found: list[object] = []
    spare = threading.Thread(target=lambda: found.append(queue.take(1000, spare=True)), daemon=True)
    spare.start()
    queue.put([waiting(500), waiting(400)], ANYONE)
    spare.join(0.2)  # it has seen that nothing runs, and waits again
    batch, _ = queue.take(1000)  # type: ignore[misc]
    assert sizes(batch) == [500]
    spare.join(10)
    assert sizes(found[0][0]) == [400]  # type: ignore[index]


def test_a_call_runs_between_batches_and_close_ends_the_taking() -> None:
    queue = Queue(1000)
    queue.put([waiting(3)], ANYONE)
    queue.put_call(lambda: None)
    assert callable(queue.take(10))
    assert isinstance(queue.take(10), tuple)
    queue.close()
    assert queue.take(10) is None


def test_a_flood_leaves_others_their_part_of_the_places() -> None:
    queue = Queue(100)
    flood, other = Asker(source="flood", key=1), Asker(source="other", key=2)
    queue.put([waiting(100, "flood")], flood)
    assert queue.shut_for("flood")
    assert not queue.shut_for("other")
    queue.put([waiting(40, "other")], other)
    with pytest.raises(QueueFull):
        queue.put([waiting(20, "other")], other)  # over a half
    with pytest.raises(QueueFull):
        queue.put([waiting(1, "flood")], flood)
    taken(queue, 1000)
    assert queue.tokens == 0
    assert not queue.shut_for("flood")


def test_a_light_one_is_not_made_to_wait_for_the_end_of_a_floods_batch() -> None:
    queue = Queue(100_000)
    queue.put([waiting(10, "flood") for _ in range(500)], Asker(source="flood"))
    queue.put([waiting(10, "light", Ticket(lambda: None, [None], 1))], Asker(source="light"))
    queue.put([waiting(10, "slight")], Asker(source="slight"))
    batches = [[w.line[1] for w in taken(queue, 1000)] for _ in range(3)]
    assert [sorted(set(batch)) for batch in batches] == [["flood"], ["light", "slight"], ["flood"]]
    assert len(batches[2]) == 100
