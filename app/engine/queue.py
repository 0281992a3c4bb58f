"""The sequences that wait for the model: who is in which batch, and who goes ahead of one.

A batch is formed the moment a thread is free. That is dynamic batching: an encoder has no decode
steps for continuous batching to fill. Against head-of-line blocking a flood stands in batches of
its own, and short work goes ahead of a running batch. Knows lengths and turns; knows no tensors or
HTTP.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable

from app.engine.admission import Admission, Asker
from app.engine.request import Request
from app.engine.turns import LineKey, Turns
from app.model.sequence import Sequence

BULK_COST = 4.0  # while both wait, bulk gets one token for four interactive ones
SMALLEST_SHARE = 256  # tokens; a backlog is cut no smaller to give every thread some

Call = Callable[[], None]


class QueueClosed(Exception):
    """Nothing runs any more: the engine has been stopped."""


class Queue:
    """Any thread puts, the model's threads take. One lock (a condition) is around all of it."""

    def __init__(self, admission: Admission, parts: int = 1) -> None:
        """parts: what waits is cut into so many batches at least."""
        self._admission = admission
        self._parts = parts
        self._turns: Turns[Sequence] = Turns({True: BULK_COST})
        self._calls: deque[Call] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._running = 0
        self._changes = 0

    @property
    def changes(self) -> int:
        """A number that grows with every put: as long as it stays, nothing new waits.

        Read without the lock, once a layer: a put in between is seen at the next one.
        """
        return self._changes

    def put(self, request: Request, sequences: list[Sequence]) -> None:
        """Let all of a request's sequences wait, or none. Raises QueueFull; QueueClosed."""
        size = tokens_of(sequences)
        with self._ready:
            self._refuse_closed()
            self._admission.admit(request.asker, size)
            request.waiting_tokens += size
            for sequence in sequences:
                self._turns.add(_line(sequence), len(sequence.ids), sequence)
            self._changes += 1
            self._ready.notify_all()

    def put_call(self, call: Call) -> None:
        """Have one of the model's threads run `call`, between two layers if it is busy."""
        with self._ready:
            self._refuse_closed()
            self._calls.append(call)
            self._changes += 1
            self._ready.notify_all()

    def cancel(self, request: Request) -> None:
        """Nobody waits for the request any more: its sequences make room at once."""
        with self._ready:
            request.cancelled = True
            self._leave(request, request.waiting_tokens)

    def take(
        self, budget: int, *, spare: bool = False
    ) -> tuple[list[Sequence], bool] | Call | None:
        """Wait for work: a call, or sequences of at most `budget` tokens, or one longer sequence.

        With the sequences comes whether they are alone: nothing waits or runs beside them. A spare
        thread takes work only while another thread runs. Work counts as running until over().
        Returns None once the queue is closed and empty.
        """
        with self._ready:
            while True:
                self._ready.wait_for(lambda: self._closed or self._has_work(spare))
                work = self._next(budget)
                if work is not None or self._closed:
                    return work

    def take_ahead(self, running: list[Sequence], budget: int) -> list[Sequence] | Call | None:
        """What is to run before the rest of a running batch; None: nothing. Never waits.

        A call, or sequences whose turn would have been before the end of the batch's.
        """
        with self._ready:
            if self._calls:
                return self._calls.popleft()
            return self._take(budget, {_line(sequence) for sequence in running}) or None

    def over(self) -> None:
        """What take() gave is over."""
        with self._ready:
            self._running -= 1
            self._ready.notify_all()

    def close(self) -> None:
        """Let take() return None once nothing waits."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise QueueClosed("the engine has been stopped")

    def _has_work(self, spare: bool) -> bool:
        if spare and not self._running:
            return False
        return bool(self._calls or self._turns)

    def _next(self, budget: int) -> tuple[list[Sequence], bool] | Call | None:
        """The next work, which runs from here on; None: all that waited was cancelled."""
        if self._calls:
            self._running += 1
            self._ready.notify_all()
            return self._calls.popleft()
        share = max(SMALLEST_SHARE, math.ceil(self._admission.tokens / self._parts))
        batch = self._take(min(budget, share))
        if not batch:
            return None
        alone = not self._turns and not self._running
        self._running += 1
        if self._turns:  # a spare thread that woke before this one waits again
            self._ready.notify_all()
        return batch, alone

    def _take(self, budget: int, ahead_of: Collection[LineKey] = ()) -> list[Sequence]:
        """Whose turn it is, up to `budget` tokens; only those before the end of all of these lines.

        A flood is a source with more waiting than one batch holds. It never preempts, and is
        batched alone: beside it others would wait for its full batch (head-of-line blocking).
        """
        self._turns.begin()
        batch: list[Sequence] = []
        tokens_of_source: Counter[Hashable] = Counter()
        room, beside_flood = budget, False
        while self._turns:
            _, tokens, sequence = self._turns.peek()
            request: Request = sequence.request
            if request.cancelled:
                self._turns.pop(free=True)
                continue
            source = request.asker.source
            flood = self._admission.tokens_of(source) + tokens_of_source[source] > budget
            if batch and (tokens > room or flood != beside_flood):
                break
            if ahead_of and (flood or not all(map(self._turns.ahead_of, ahead_of))):
                break
            beside_flood = flood
            tokens_of_source[source] += tokens
            self._turns.pop()
            self._leave(request, tokens)
            batch.append(sequence)
            room -= tokens
        return batch

    def _leave(self, request: Request, tokens: int) -> None:
        """So many of the request's tokens wait no more."""
        request.waiting_tokens -= tokens
        self._admission.leave(request.asker.source, tokens)


def tokens_of(sequences: list[Sequence]) -> int:
    """How many tokens they have together."""
    return sum(len(sequence.ids) for sequence in sequences)


def _line(sequence: Sequence) -> LineKey:
    """In which line it waits: its priority's, its adapter's, its client's."""
    asker: Asker = sequence.request.asker
    return (asker.bulk, sequence.version.digest, asker.client)
