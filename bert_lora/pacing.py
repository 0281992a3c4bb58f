"""How many requests are under way, and when one that had no answer is sent again.

Additive increase, multiplicative decrease, as TCP does it: each answer lets a little more under
way, each refusal half as much. A refusal's Retry-After holds for new requests, too. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bert_lora.errors import BertLoraError, Unavailable, Unreachable

T = TypeVar("T")
FIRST = 2.0  # under way before anything is known of the server: one that runs, one that waits
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 3.0


class Pace:
    """Of one client, over all its calls; used from one event loop. most: under way at once."""

    def __init__(self, most: int, patience_s: float) -> None:
        self.most, self.patience_s = most, patience_s
        self.allowed = min(FIRST, float(most))
        self._under_way = 0
        self._closed_until = 0.0
        self._met = False
        self._changed = asyncio.Condition()

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        again: Callable[[BertLoraError], bool] = lambda _: True,
    ) -> T:
        """What the attempt answers, once there is room for it.

        It is made again where no answer came, or one that says "later", until it has taken
        patience_s; what it raised last is raised then. A server that has never answered is not
        waited for. again: of such an error, whether the attempt may be made twice.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < self.allowed)
            self._under_way += 1
        try:
            await asyncio.sleep(self._closed_until - time.monotonic())
            return await self._answered(attempt, again)
        finally:
            self._under_way -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _answered(
        self, attempt: Callable[[], Awaitable[T]], again: Callable[[BertLoraError], bool]
    ) -> T:
        end, times = time.monotonic() + self.patience_s, 0
        while True:
            try:
                answer = await attempt()
            except (Unreachable, Unavailable) as error:
                self._met = self._met or isinstance(error, Unavailable)
                wait_s = wait_before(error, times)
                if not (self._met and worth_it(error) and again(error)):
                    raise
                if time.monotonic() + wait_s > end:
                    raise
                self.allowed = max(1.0, self.allowed / 2)
                self._closed_until = max(self._closed_until, time.monotonic() + wait_s)
                await asyncio.sleep(wait_s)
                times += 1
            else:
                self._met = True
                self.allowed = min(float(self.most), self.allowed + 1 / self.allowed)
                return answer


def worth_it(error: BertLoraError) -> bool:
    """Whether the same request may have an answer later. A bug's 500 is told at once."""
    return not (isinstance(error, Unavailable) and error.status in (500, 501, 507))


def wait_before(error: BertLoraError, times: int) -> float:
    """Seconds: as the server says, or else twice as many each time, never all at once."""
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        return error.retry_after_s
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**times) * random.uniform(0.5, 1.0)
