"""The loop: one thread owns the model, takes what is waiting, runs it packed, hands it back.

Knows tokens and versions; knows nothing of HTTP. `Engine.run` is the way in from the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from app.adapters.registry import Version
from app.engine.queue import Queue, Ticket, Waiting
from app.engine.tokenizer import Tokens
from app.model.batch import Item, Want
from app.model.encoder import Encoder

log = logging.getLogger(__name__)
T = TypeVar("T")


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


class Engine:
    """The model and its thread. start() and stop() frame its life; run() is safe from the loop."""

    def __init__(self, encoder: Encoder, max_batch_tokens: int, max_queue_tokens: int) -> None:
        """The budget is never under one sequence: every admissible input fits a batch."""
        self.encoder = encoder
        self.queue = Queue(max_queue_tokens)
        self.max_batch_tokens = max(max_batch_tokens, encoder.max_length)
        self._thread = threading.Thread(target=self._loop, name="model", daemon=True)
        self.on_batch: Callable[[int, int], None] = lambda tokens, sequences: None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what is waiting, then end."""
        self.queue.close()
        self._thread.join()

    @property
    def turning(self) -> bool:
        return self._thread.is_alive()

    async def run(self, asks: Sequence[Ask]) -> Answer:
        """Run the sequences, perhaps beside others', over one batch or several.

        Raises QueueFull at once; an exception of the forward as it is. Cancelling drops what waits.
        """
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()

        def done() -> None:
            loop.call_soon_threadsafe(finished.set)

        ticket = Ticket(done, [None] * len(asks), len(asks))
        self.queue.put(
            [
                Waiting(a.tokens.ids, a.tokens.types, a.want, a.version, ticket, i)
                for i, a in enumerate(asks)
            ]
        )
        try:
            await finished.wait()
        finally:
            ticket.cancelled = True
        if ticket.error is not None:
            raise ticket.error
        started = ticket.started_at or ticket.put_at
        return Answer(ticket.results, started - ticket.put_at, ticket.finished_at - started)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on the model's thread, between two batches."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                method(value)

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(settle, future.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, future.set_result, result)

        self.queue.put_call(run)
        return await future

    def _loop(self) -> None:
        while True:
            work = self.queue.take(self.max_batch_tokens)
            if work is None:
                return
            if callable(work):
                work()
            else:
                self._step(work)

    def _step(self, batch: list[Waiting]) -> None:
        """One batch. Where it fails, its members run alone, so that only the culprit fails."""
        started = time.perf_counter()
        for waiting in batch:
            waiting.ticket.started_at = waiting.ticket.started_at or started
        try:
            rows = self.encoder.run([_item(w) for w in batch])
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._step([waiting])
            else:
                log.exception("a forward failed")
                _fail(batch[0].ticket, error)
            return
        finished = time.perf_counter()
        tokens = sum(len(w.ids) for w in batch)
        self.queue.drained(tokens, finished - started)
        self.on_batch(tokens, len(batch))
        for waiting, row in zip(batch, rows, strict=True):
            _deliver(waiting.ticket, waiting.index, row, finished)


def _item(waiting: Waiting) -> Item:
    version = waiting.version
    if version is None:
        return Item(waiting.ids, waiting.types, waiting.want)
    return Item(waiting.ids, waiting.types, waiting.want, version.layers, version.adapter.head)


def _deliver(ticket: Ticket, index: int, row: Tensor, finished: float) -> None:
    ticket.results[index] = row
    ticket.left -= 1
    ticket.finished_at = finished
    if ticket.left == 0:
        ticket.done()


def _fail(ticket: Ticket, error: Exception) -> None:
    if ticket.error is None:
        ticket.error = error
        ticket.done()
