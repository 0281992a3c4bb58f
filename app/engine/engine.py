"""The model's threads: take what waits, run it packed, hand it back.

`Engine.run` is the way in from the event loop. Between two layers a batch lets work go ahead whose
turn comes before the batch's own end. A batch that nobody waits for any more stops there. Knows
sequences and threads; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.engine.admission import Admission, Asker
from app.engine.budget import Budget
from app.engine.failures import failure_of, lost_its_device
from app.engine.forward import Forward
from app.engine.queue import Call, Queue, tokens_of
from app.engine.request import Request, notify_all
from app.engine.rows import hand_back
from app.engine.width import Width
from app.model.encoder import Encoder
from app.model.machine import first_line
from app.model.sequence import Sequence
from app.model.version import Version

log = logging.getLogger(__name__)
T = TypeVar("T")
AHEAD_TOKENS = 256  # that may run between two layers of another batch


@dataclass(frozen=True, eq=False)
class Answer:
    """rows: one float32 CPU tensor per sequence, in order. queue_s, inference_s: seconds."""

    rows: list[Tensor]
    queue_s: float
    inference_s: float


class Abandoned(Exception):
    """Nobody waits for the batch any more."""


class Engine:
    """The model and its threads. start() and stop() frame their life; run() is safe from the loop.

    requests: those that wait or run, with their sequences. hung: a forward has stood still for too
    long; the watchdog alone sets it. lost: the error that ended the device's context.
    budget: shrinks where the device is short of memory.

    The threads share these without a lock: each is set whole, and a late look costs a batch that
    fails as the other's did.
    """

    def __init__(
        self,
        encoder: Encoder,
        max_batch_tokens: int,
        max_queue_tokens: int | None,
        threads: int = 1,
        cores: int = 1,
        parts: int = 1,
    ) -> None:
        """The budget is never under one sequence: every admissible input fits a batch.

        threads: batches that run at the same time, each on its share of the cores. parts: see
        Queue.
        """
        self.encoder = encoder
        self.budget = Budget(max_batch_tokens, encoder.max_length)
        self.admission = Admission(max_queue_tokens, floor_tokens=4 * self.max_batch_tokens)
        self.queue = Queue(self.admission, parts)
        self.on_forward: Callable[[Forward], None] = lambda _: None
        self.requests: dict[Request, list[Sequence]] = {}  # changed on the event loop only
        self.hung = False
        self.lost: str | None = None
        self._width = Width(cores, threads)
        self._ticks = count(1)
        self._beats: dict[int, int] = {}  # of threads at work; each sets and drops its own
        self._cores = [0] * threads  # of each thread's products, as each has set it for itself
        self._threads = [
            threading.Thread(target=self._loop, args=(i,), name=f"model-{i}", daemon=True)
            for i in range(threads)
        ]

    @property
    def base(self) -> Version:
        """The plain base, as the version that a sequence without an adapter runs through."""
        return self.encoder.version

    def start(self) -> None:
        """Start the model's threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, at_most_s: float = 5) -> None:
        """Answer what is waiting, then end; a forward that hangs is left behind."""
        self.queue.close()
        end = time.monotonic() + at_most_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            log.error("a forward did not end within %(seconds)g s", {"seconds": at_most_s})

    @property
    def max_batch_tokens(self) -> int:
        """Of a batch now."""
        return self.budget.tokens

    @property
    def turning(self) -> bool:
        """Whether all of the model's threads live."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def pulse(self) -> dict[int, int]:
        """Of each thread that is at work, a number that changes as it gets on, layer by layer."""
        return self._beats.copy()

    async def run(self, sequences: list[Sequence], asker: Asker = Asker()) -> Answer:  # noqa: B008
        """Run the sequences, perhaps beside others', over one batch or several.

        A request of more tokens than a batch holds is bulk. Raises QueueFull at once; ForwardFailed
        for what the model fails on. Cancelling drops what waits.
        """
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        bulk = asker.bulk or tokens_of(sequences) > self.max_batch_tokens

        def notify() -> None:
            _tell(loop, over.set)

        request = Request(notify, replace(asker, bulk=bulk), len(sequences))
        for index, sequence in enumerate(sequences):
            sequence.request, sequence.index = request, index
        self.queue.put(request, sequences)
        self.requests[request] = sequences
        try:
            await over.wait()
        finally:
            del self.requests[request]
            self.queue.cancel(request)
        if request.error is not None:
            raise request.error
        started = request.started_at or request.put_at
        rows = [sequence.row for sequence in sequences if sequence.row is not None]
        return Answer(rows, started - request.put_at, request.finished_at - started)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on one of the model's threads, between two layers of what runs there."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                method(value)

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self._look_for_loss(error)
                _tell(loop, settle, future.set_exception, error)
            else:
                _tell(loop, settle, future.set_result, result)

        self.queue.put_call(run)
        return await future

    def _loop(self, number: int) -> None:
        """One thread's life. The first takes what comes; the others what comes beside another."""
        while self._step(number):
            pass

    def _step(self, number: int) -> bool:
        """Schedule, run, hand back. Returns False once the queue is closed and empty."""
        spare = number > 0
        if (work := self.queue.take(self.max_batch_tokens, spare=spare)) is None:
            return False
        self._beats[number] = next(self._ticks)
        requests = self._do(work, number)
        del self._beats[number]
        self._width.end(spare=spare)
        self.queue.over()  # before the answers: what they bring next finds this thread free
        notify_all(requests)
        return True

    def _do(self, work: tuple[list[Sequence], bool] | Call, number: int) -> list[Request]:
        """Run a call, or a batch as wide as it may be; returns the requests that it finishes."""
        if callable(work):
            work()
            return []
        batch, alone = work
        cores = self._width.begin(spare=number > 0, alone=alone)
        if cores != self._cores[number]:
            torch.set_num_threads(cores)
            self._cores[number] = cores
        return self._run_measured(batch, self._between(batch, number))

    def _between(self, batch: list[Sequence], number: int) -> Callable[[], None]:
        """What a batch does before each of its layers; a short one is not worth interrupting."""
        seen = self.queue.changes
        long = tokens_of(batch) > AHEAD_TOKENS

        def between() -> None:
            nonlocal seen
            self._beats[number] = next(self._ticks)
            if all(sequence.request.cancelled for sequence in batch):
                raise Abandoned
            while long and seen != (seen := self.queue.changes):
                work = self.queue.take_ahead(batch, AHEAD_TOKENS)
                if callable(work):
                    work()
                elif work:
                    notify_all(self._run_measured(work, lambda: None))

        return between

    def _run_measured(self, batch: list[Sequence], between: Callable[[], None]) -> list[Request]:
        started = time.perf_counter()
        requests = self._run(batch, between)
        self.admission.measure(tokens_of(batch), started)
        return requests

    def _run(self, batch: list[Sequence], between: Callable[[], None]) -> list[Request]:
        """Run one batch, equal sequences once; returns the requests that it finishes.

        Where it fails, its members run alone, so that only the culprit fails.
        """
        started = time.perf_counter()
        distinct: dict[Hashable, Sequence] = {}
        for sequence in batch:
            sequence.request.started_at = sequence.request.started_at or started
            distinct.setdefault(sequence.identity, sequence)
        self.encoder.take_update_s()  # of what was no batch
        try:
            rows = self.encoder.run(list(distinct.values()), between)
        except Abandoned:
            return []
        except Exception as error:
            return self._run_in_parts(batch, between, error)
        finished_at = time.perf_counter()
        times = finished_at - started, self.encoder.take_update_s()
        self.on_forward(Forward(batch, distinct.values(), self.max_batch_tokens, *times))
        self.budget.enough(tokens_of(batch))
        return hand_back(batch, dict(zip(distinct, rows, strict=True)), finished_at)

    def _run_in_parts(
        self, batch: list[Sequence], between: Callable[[], None], error: Exception
    ) -> list[Request]:
        """A failed batch in parts: halves where memory was short, else one by one.

        Not again where it ended the device's context: all would fail of it, for ever.
        """
        short = isinstance(error, torch.OutOfMemoryError)
        self._look_for_loss(error)
        if self.lost is not None or len(batch) == 1:
            log.error("a forward failed", exc_info=error)
            failures = [(s.request, failure_of(s.index, error, self.lost)) for s in batch]
            return [request for request, failure in failures if request.fail(failure)]
        if short:
            traceback.clear_frames(error.__traceback__)  # they hold what the forward computed
            torch.cuda.empty_cache()
            self.budget.short(tokens_of(batch))
            now = {"max_batch_tokens": self.budget.tokens}
            log.warning("out of memory: a batch has at most %(max_batch_tokens)d tokens", now)
        size = (len(batch) + 1) // 2 if short else 1
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [request for part in parts for request in self._run(part, between)]

    def _wait_for_device(self) -> None:
        torch.cuda.synchronize(self.encoder.device)

    def _look_for_loss(self, error: Exception) -> None:
        """The watchdog ends a process whose device is lost."""
        if self.lost is None and lost_its_device(error, self._wait_for_device):
            self.lost = first_line(error)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call it on the loop, unless that has been closed meanwhile: then nobody waits any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
