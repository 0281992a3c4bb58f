"""Weighted sums of versions, ready to run: made when one is asked for, and kept a while.

Whoever holds a sum keeps it alive until its answer has left, as with any version. Knows versions
and bytes; knows no names. Used from the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

from app.adapters.sums import Term, weighted_sum
from app.adapters.values import laid_out
from app.model.delta import unmerged_layers
from app.model.encoder import Encoder
from app.model.version import Version

MOST_KEPT = 64
RETRY_S = 1.0
TRIES, TRY_S = 10, 0.005  # until there is room


class CompositionsFull(Exception):
    """The sums in use take all the memory that sums may."""

    def __init__(self) -> None:
        super().__init__(
            "the weighted sums of adapters that are in use take all the memory that is set aside "
            "for them: ask again, or keep one by POST /adapters/{name}/compose"
        )
        self.retry_after_s = RETRY_S


class Compositions:
    """budget_bytes: of all sums that are alive, held by requests or kept here; one is always let
    in.
    """

    def __init__(self, encoder: Encoder, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._encoder = encoder
        self._one_at_a_time = asyncio.Lock()
        self._alive: WeakValueDictionary[str, Version] = WeakValueDictionary()
        self._kept: OrderedDict[str, Version] = OrderedDict()

    async def get(self, terms: Sequence[tuple[str, Version, float]]) -> Version:
        """The sum of (name, version, weight); its digest tells versions and weights.

        Raises CannotCompose, CompositionsFull.
        """
        digest = digest_of(terms)
        async with self._one_at_a_time:
            version = self._alive.get(digest)
            if version is None:
                await self._make_room(sum(v.adapter.resident_bytes for _, v, _ in terms))
                version = await asyncio.to_thread(self._sum, digest, terms)
                self._alive[digest] = version
            self._kept[digest] = version
            self._kept.move_to_end(digest)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return version

    async def _make_room(self, size: int) -> None:
        """Let go of sums that nobody asked for lately. Raises CompositionsFull."""
        for _ in range(TRIES):
            while self._kept and self._bytes() + size > self.budget_bytes:
                self._kept.popitem(last=False)
            if not self._alive or self._bytes() + size <= self.budget_bytes:
                return
            await asyncio.sleep(TRY_S)  # the thread that made the last one may hold it yet
        raise CompositionsFull

    def _bytes(self) -> int:
        return sum(version.adapter.resident_bytes for version in list(self._alive.values()))

    def _sum(self, digest: str, terms: Sequence[tuple[str, Version, float]]) -> Version:
        encoder = self._encoder
        named = [Term(name, version.adapter, weight) for name, version, weight in terms]
        summed = weighted_sum(named, encoder.base)
        adapter = laid_out(summed, encoder.device, encoder.adapters_dtype)
        return Version(digest, adapter, unmerged_layers(adapter, list(encoder.wrappers)))


def digest_of(terms: Sequence[tuple[str, Version, float]]) -> str:
    """In the order of the terms: the first one with a head gives the sum its own."""
    spelled = "+".join(f"{version.digest}:{weight!r}" for _, version, weight in terms)
    return hashlib.sha256(spelled.encode()).hexdigest()
