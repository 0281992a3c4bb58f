"""The loop: the model's threads take what is waiting, run it packed, hand it back.

Knows tokens and versions; knows nothing of HTTP. `Engine.run` is the way in from the event loop.
Between two layers a batch lets those run first whose turn comes before its own end, and stops where
nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.engine.failures import NOT_FINITE, NotFinite, lost_its_device, told
from app.engine.queue import Asker, Queue, Ticket, Waiting
from app.engine.tokenizer import Tokens
from app.engine.version import Version
from app.model.batch import Item, Want
from app.model.encoder import Encoder
from app.model.machine import first_line

log = logging.getLogger(__name__)
T = TypeVar("T")
AHEAD_TOKENS = 256  # that may run between two layers of another batch
QUIET_S = 0.1  # without work for the other threads, before one takes their cores as well


@dataclass(frozen=True, eq=False)
class Ask:
    """One sequence to run: its tokens, what it is to give, through which version (None: the base)."""

    tokens: Tokens
    want: Want
    version: Version | None


@dataclass(frozen=True, eq=False)
class Answer:
    """rows: one fp32 CPU tensor per ask, in order. Times in seconds."""

    rows: list[Tensor]
    queue_s: float
    inference_s: float


class Abandoned(Exception):
    """Nobody waits for the batch any more."""


class Engine:
    """The model and its threads. start() and stop() frame their life; run() is safe from the loop."""

    def __init__(
        self,
        encoder: Encoder,
        max_batch_tokens: int,
        max_queue_tokens: int | None,
        threads: int = 1,
        cores: int = 1,
    ) -> None:
        """The budget is never under one sequence: every admissible input fits a batch.

        threads: batches that run at the same time, each on its share of the cores; one alone takes
        them all.
        """
        self.encoder = encoder
        self.max_batch_tokens = max(max_batch_tokens, encoder.max_length)
        self.queue = Queue(max_queue_tokens, floor_tokens=4 * max_batch_tokens, takers=threads)
        self.on_batch: Callable[[int, int], None] = lambda tokens, sequences: None
        self._cores = cores
        self._beats = [0] * threads  # of each thread; while one is at work its beats go on
        self._at_work: set[int] = set()
        self.hung = False  # the watchdog's word
        self.lost: str | None = None  # the error that ended its device's context
        self._spare_ran_at = 0.0
        self._threads = [
            threading.Thread(target=self._loop, args=(i,), name=f"model-{i}", daemon=True)
            for i in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, at_most_s: float = 5) -> None:
        """Answer what is waiting, then end; a forward that hangs is left behind."""
        self.queue.close()
        end = time.monotonic() + at_most_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            log.error("a forward did not end within %g s", at_most_s)

    @property
    def turning(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    @property
    def pulse(self) -> dict[int, int]:
        """Of each thread that is at work, a number that changes as it gets on, layer by layer."""
        return {number: self._beats[number] for number in tuple(self._at_work)}

    async def run(self, asks: Sequence[Ask], asker: Asker = Asker()) -> Answer:  # noqa: B008
        """Run the sequences, perhaps beside others', over one batch or several.

        Raises QueueFull at once; ForwardFailed for what the model fails on. Cancelling drops what waits.
        """
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()

        def done() -> None:
            loop.call_soon_threadsafe(finished.set)

        ticket = Ticket(done, [None] * len(asks), len(asks))
        bulk = asker.bulk or sum(len(a.tokens.ids) for a in asks) > self.max_batch_tokens
        self.queue.put(
            [
                Waiting(
                    a.tokens.ids,
                    a.tokens.types,
                    a.want,
                    a.version,
                    ticket,
                    i,
                    (bulk, a.version and a.version.digest, asker.client),
                )
                for i, a in enumerate(asks)
            ],
            asker,
        )
        try:
            await finished.wait()
        finally:
            self.queue.cancel(ticket)
        if ticket.error is not None:
            raise ticket.error
        started = ticket.started_at or ticket.put_at
        return Answer(ticket.results, started - ticket.put_at, ticket.finished_at - started)

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
                loop.call_soon_threadsafe(settle, future.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, future.set_result, result)

        self.queue.put_call(run)
        return await future

    def _loop(self, number: int) -> None:
        """The first thread takes what comes; the others what comes while one is running."""
        spare, cores, began = number > 0, 0, 0.0
        while True:
            work = self.queue.take(self.max_batch_tokens, spare=spare)
            if work is None:
                return
            self._beats[number] += 1
            self._at_work.add(number)
            finished: list[Ticket] = []
            if callable(work):
                work()
            else:
                batch, alone = work
                # Not at the end of a backlog either, beside which the others were running.
                quiet = self._spare_ran_at < min(began, time.perf_counter() - QUIET_S)
                began = time.perf_counter()
                wide = alone and not spare and quiet
                wanted = self._cores if wide else max(1, self._cores // len(self._threads))
                if wanted != cores:
                    torch.set_num_threads(wanted)
                    cores = wanted
                finished = self._timed_step(batch, self._between(batch, number))
            self._at_work.discard(number)
            if spare:
                self._spare_ran_at = time.perf_counter()
            self.queue.over()  # before the answers: what they bring next finds this thread free
            _tell(finished)

    def _between(self, batch: list[Waiting], number: int) -> Callable[[], None]:
        """What a batch does before each of its layers; a short one is not worth interrupting."""
        seen = self.queue.changes
        long = _tokens(batch) > AHEAD_TOKENS

        def between() -> None:
            nonlocal seen
            self._beats[number] += 1
            if all(w.ticket.cancelled for w in batch):
                raise Abandoned
            while long and seen != (seen := self.queue.changes):
                work = self.queue.take_ahead(batch, AHEAD_TOKENS)
                if callable(work):
                    work()
                elif work:
                    _tell(self._timed_step(work, lambda: None))

        return between

    def _timed_step(self, batch: list[Waiting], between: Callable[[], None]) -> list[Ticket]:
        started = time.perf_counter()
        finished = self._step(batch, between)
        self.queue.drained(_tokens(batch), started)
        return finished

    def _step(self, batch: list[Waiting], between: Callable[[], None]) -> list[Ticket]:
        """One batch, and the tickets that are finished with it, to be told.

        Where it fails, its members run alone, so that only the culprit fails.
        """
        started = time.perf_counter()
        for waiting in batch:
            waiting.ticket.started_at = waiting.ticket.started_at or started
        same: dict[Any, int] = {}  # what is asked twice in a batch is computed once
        places = [same.setdefault(_identity(w), len(same)) for w in batch]
        first = {place: w for w, place in zip(reversed(batch), reversed(places), strict=True)}
        try:
            rows = self.encoder.run([_item(first[i]) for i in range(len(same))], between)
        except Abandoned:
            return []
        except Exception as error:
            return self._again(batch, between, error)
        finished = time.perf_counter()
        self.on_batch(_tokens(batch), len(batch))
        over = [
            _deliver(waiting.ticket, waiting.index, rows[place], finished)
            if torch.isfinite(rows[place]).all()
            else _fail(waiting.ticket, NotFinite(f"inputs[{waiting.index}]: {NOT_FINITE}"))
            for waiting, place in zip(batch, places, strict=True)
        ]
        return [w.ticket for w, last in zip(batch, over, strict=True) if last]

    def _again(
        self, batch: list[Waiting], between: Callable[[], None], error: Exception
    ) -> list[Ticket]:
        """A failed batch in parts: halves where memory was short, else one by one.

        Not again where it ended the device's context: all would fail of it, for ever.
        """
        short = isinstance(error, torch.OutOfMemoryError)
        self._look_for_loss(error)
        if self.lost is not None or len(batch) == 1:
            log.error("a forward failed", exc_info=error)
            return [w.ticket for w in batch if _fail(w.ticket, told(w.index, error, self.lost))]
        if short:
            torch.cuda.empty_cache()
            smaller = max(self.encoder.max_length, self.max_batch_tokens // 2)
            log.warning("out of memory: a batch is at most %d tokens from now on", smaller)
            self.max_batch_tokens = smaller
        size = (len(batch) + 1) // 2 if short else 1
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [ticket for part in parts for ticket in self._step(part, between)]

    def _wait_for_device(self) -> None:
        torch.cuda.synchronize(self.encoder.device)

    def _look_for_loss(self, error: Exception) -> None:
        """The watchdog ends a process whose device is lost."""
        if self.lost is None and lost_its_device(error, self._wait_for_device):
            self.lost = first_line(error)


def _tokens(batch: list[Waiting]) -> int:
    return sum(len(w.ids) for w in batch)


def _identity(waiting: Waiting) -> Any:
    return (tuple(waiting.ids), tuple(waiting.types), waiting.want, id(waiting.version))


def _item(waiting: Waiting) -> Item:
    version = waiting.version
    if version is None:
        return Item(waiting.ids, waiting.types, waiting.want)
    return Item(waiting.ids, waiting.types, waiting.want, version.layers, version.adapter.head)


def _deliver(ticket: Ticket, index: int, row: Tensor, finished: float) -> bool:
    """Whether the ticket is finished with it."""
    with ticket.lock:  # two threads may hold sequences of one ticket
        ticket.results[index] = row
        ticket.left -= 1
        ticket.finished_at = finished
        return ticket.left == 0


def _fail(ticket: Ticket, error: Exception) -> bool:
    """Whether it is the ticket's first failure: the others need not be told."""
    with ticket.lock:
        first = ticket.error is None
        ticket.error = ticket.error or error
    return first


def _tell(finished: list[Ticket]) -> None:
    for ticket in finished:
        ticket.done()
