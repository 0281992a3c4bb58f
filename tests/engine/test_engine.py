"""One bad sequence fails alone, short ones go ahead, nothing is computed for nobody or twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

from app.engine.admission import Asker
from app.engine.engine import Engine
from app.engine.failures import DeviceLost, ForwardFailed, NotFinite, OutOfMemory, lost_its_device
from app.engine.watchdog import Looks
from app.model.sequence import Sequence
from tests.engine.sequences import sequence as ask


class FailingEncoder:
    """Gives each sequence its length; fails for any batch that holds token 13."""

    max_length = 100

    def take_update_s(self) -> float:
        return 0.0

    def run(self, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
        if any(13 in s.ids for s in sequences):
            raise RuntimeError("unlucky")
        return [torch.tensor([float(len(s.ids))]) for s in sequences]


def test_a_sequence_that_fails_takes_no_other_of_its_batch_with_it() -> None:
    async def run() -> list[object]:
        engine = Engine(FailingEncoder(), 1000, 1000)  # type: ignore[arg-type]
        asks = [[ask(1, 2)], [ask(13)], [ask(1), ask(1, 2, 3)]]
        waiting = [asyncio.create_task(engine.run(a)) for a in asks]
        await asyncio.sleep(0)
        engine.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        again = await engine.run([ask(5, 6, 7, 8)])
        assert engine.turning
        await asyncio.to_thread(engine.stop)
        assert not engine.turning
        return [*found, again]

    first, failed, both, again = asyncio.run(run())
    assert [r.item() for r in first.rows] == [2]  # type: ignore[attr-defined]
    assert isinstance(failed, ForwardFailed)
    assert [r.item() for r in both.rows] == [1, 3]  # type: ignore[attr-defined]
    assert [r.item() for r in again.rows] == [4]  # type: ignore[attr-defined]


def test_a_call_runs_on_the_models_thread_and_its_error_comes_back() -> None:
    async def run() -> None:
        engine = Engine(FailingEncoder(), 1000, 1000)  # type: ignore[arg-type]
        engine.start()
        assert await engine.call(lambda: 41 + 1) == 42
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda: 1 / 0)
        await asyncio.to_thread(engine.stop)

    asyncio.run(run())


class SlowEncoder(FailingEncoder):
    """Gives each sequence its length, over three layers; notes what ran in which order."""

    max_length = 1000

    def __init__(self) -> None:
        self.ran: list[list[int]] = []
        self.layer = threading.Event()
        self.go_on = threading.Event()

    def run(self, sequences: list[Sequence], between: Callable[[], None]) -> list[torch.Tensor]:
        for _ in range(3):
            between()
            if len(sequences[0].ids) > 100:
                self.layer.set()
                self.go_on.wait(10)
        self.ran.append([len(s.ids) for s in sequences])
        return [torch.tensor([float(len(s.ids))]) for s in sequences]


async def started(encoder: SlowEncoder) -> tuple[Engine, asyncio.Task[object]]:
    """An engine in the midst of a long sequence."""
    engine = Engine(encoder, 1000, 100_000)  # type: ignore[arg-type]
    engine.start()
    long = asyncio.create_task(engine.run([ask(*range(500))]))
    await asyncio.to_thread(encoder.layer.wait, 10)
    return engine, long  # type: ignore[return-value]


def test_a_short_request_does_not_wait_for_the_end_of_a_long_one() -> None:
    async def run() -> list[list[int]]:
        encoder = SlowEncoder()
        engine, long = await started(encoder)
        other = Asker(client="another")
        short = asyncio.create_task(engine.run([ask(1, 2, 3)], other))
        await asyncio.sleep(0.05)
        encoder.go_on.set()
        await asyncio.gather(short, long)
        await asyncio.to_thread(engine.stop)
        return encoder.ran

    assert asyncio.run(run()) == [[3], [500]]


def test_a_batch_that_nobody_waits_for_stops_at_the_next_layer() -> None:
    async def run() -> list[list[int]]:
        encoder = SlowEncoder()
        engine, long = await started(encoder)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        encoder.go_on.set()
        answer = await engine.run([ask(1, 2)])
        assert answer.rows[0].item() == 2
        await asyncio.to_thread(engine.stop)
        return encoder.ran

    assert asyncio.run(run()) == [[2]]


def test_what_is_asked_twice_in_a_batch_is_computed_once() -> None:
    async def run() -> tuple[list[list[int]], list[float]]:
        encoder = SlowEncoder()
        engine = Engine(encoder, 1000, 100_000)  # type: ignore[arg-type]
        answer = asyncio.create_task(engine.run([ask(1, 2), ask(7), ask(1, 2), ask(3, 4)]))
        await asyncio.sleep(0)
        engine.start()
        rows = (await answer).rows
        await asyncio.to_thread(engine.stop)
        return encoder.ran, [row.item() for row in rows]

    assert asyncio.run(run()) == ([[2, 1, 2]], [2, 1, 2, 2])


class ForgetfulEncoder(FailingEncoder):
    """Has no memory for more than four sequences, nor for one with token 13; notes the sizes."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
        if len(sequences) > 4 or any(13 in s.ids for s in sequences):
            raise torch.OutOfMemoryError("no more")
        self.ran.append(len(sequences))
        return [
            torch.tensor([float(s.ids[0]) if s.ids[0] < 90 else float("nan")]) for s in sequences
        ]


def test_where_memory_is_short_a_batch_is_halved_and_stays_smaller() -> None:
    encoder = ForgetfulEncoder()

    async def run() -> list[object]:
        engine = Engine(encoder, 1000, 1000)  # type: ignore[arg-type]
        waiting = [
            asyncio.create_task(engine.run(a))
            for a in ([ask(i) for i in range(1, 9)], [ask(13)], [ask(14)])
        ]
        await asyncio.sleep(0)
        engine.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert engine.max_batch_tokens < 1000
        await asyncio.to_thread(engine.stop)
        return list(found)

    eight, failed, one = asyncio.run(run())
    assert [r.item() for r in eight.rows] == list(range(1, 9))  # type: ignore[attr-defined]
    assert isinstance(failed, OutOfMemory)
    assert [r.item() for r in one.rows] == [14]  # type: ignore[attr-defined]
    assert max(encoder.ran) > 1  # halves, and not one by one


class Activations:
    """What a forward holds while it runs."""


class HoardingEncoder(FailingEncoder):
    """Has no memory for two sequences at once; notes whether the failed forward's are still held."""

    def __init__(self) -> None:
        self.held: list[bool] = []
        self.before: weakref.ref[Activations] | None = None

    def run(self, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
        activations = Activations()
        if len(sequences) > 1:
            self.before = weakref.ref(activations)
            raise torch.OutOfMemoryError("no more")
        self.held.append(self.before is not None and self.before() is not None)
        return [torch.tensor([1.0])]


def test_what_a_forward_held_that_ran_out_of_memory_is_free_when_its_halves_run() -> None:
    encoder = HoardingEncoder()

    async def run() -> None:
        engine = Engine(encoder, 1000, 1000)  # type: ignore[arg-type]
        engine.start()
        await engine.run([ask(1), ask(2)])
        await asyncio.to_thread(engine.stop)

    asyncio.run(run())
    assert encoder.held == [False, False]


def test_an_answer_that_is_no_number_is_an_error_and_its_neighbours_are_none() -> None:
    async def run() -> list[object]:
        engine = Engine(ForgetfulEncoder(), 1000, 1000)  # type: ignore[arg-type]
        waiting = [asyncio.create_task(engine.run([ask(i)])) for i in (5, 99, 6)]
        await asyncio.sleep(0)
        engine.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.to_thread(engine.stop)
        return list(found)

    five, failed, six = asyncio.run(run())
    assert isinstance(failed, NotFinite)
    assert [a.rows[0].item() for a in (five, six)] == [5, 6]  # type: ignore[attr-defined]


CUDA_ERRORS = (
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
)


@pytest.mark.parametrize("error", CUDA_ERRORS, ids=str)
def test_a_device_is_lost_where_it_answers_no_more_after_an_error(error: Exception) -> None:
    def dead() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    assert lost_its_device(error, dead)
    assert not lost_its_device(error, lambda: None)  # a launch that asked for too much, say
    assert not lost_its_device(torch.OutOfMemoryError("CUDA out of memory"), dead)
    assert not lost_its_device(ValueError("unlucky"), dead)


class PoisonedEncoder(FailingEncoder):
    """Fails for ever once it has seen token 13; counts what is tried."""

    max_length = 100
    device = torch.device("cuda", 99)  # which is not there, as a poisoned one is not

    def __init__(self) -> None:
        self.tried = 0

    def run(self, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
        self.tried += 1
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nand advice")


def test_on_a_lost_device_nothing_is_tried_again() -> None:
    encoder = PoisonedEncoder()

    async def run() -> list[object]:
        engine = Engine(encoder, 1000, 1000)  # type: ignore[arg-type]
        waiting = [asyncio.create_task(engine.run([ask(i, 2)])) for i in range(5)]
        await asyncio.sleep(0)
        engine.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert engine.lost == "CUDA error: device-side assert triggered"
        await asyncio.to_thread(engine.stop)
        return list(found)

    assert all(isinstance(error, DeviceLost) for error in asyncio.run(run()))
    assert encoder.tried == 1


def test_who_gets_on_is_not_taken_for_hung() -> None:
    looks = Looks()
    assert [looks.look({0: beat}) for beat in (1, 1, 1, 2, 2)] == [0, 1, 2, 0, 1]
    assert looks.look({}) == 0
    assert [looks.look({0: 5, 1: beat}) for beat in (1, 2, 3)] == [0, 1, 2]


def test_requests_one_after_another_each_have_all_cores() -> None:
    """The answer comes once its thread is free: a spare thread, with its one core, takes none."""
    ran: list[tuple[str, int]] = []

    class NotingEncoder(FailingEncoder):
        def run(self, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
            ran.append((threading.current_thread().name, torch.get_num_threads()))
            return super().run(sequences, between)

    async def run() -> None:
        engine = Engine(NotingEncoder(), 1000, 1000, threads=2, cores=2)  # type: ignore[arg-type]
        engine.start()
        for _ in range(500):
            await engine.run([ask(1, 2)])
        await asyncio.to_thread(engine.stop)

    asyncio.run(run())
    assert set(ran[1:]) == {("model-0", 2)}
    assert len(ran) == 500


def test_cores_are_counted_before_a_thread_is_given_its_own() -> None:
    code = (
        "from app.model import machine; import torch; before = machine.cores();"
        "torch.set_num_threads(1); print(before, machine.cores())"
    )
    environ = os.environ | {"OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    before, after = ran.stdout.split()
    assert before == after
