"""Which adapters are worth a merged copy, by the traffic of the last while.

Credit-based, as in dLoRA (Wu et al., OSDI 2024): an adapter earns what merging would have saved its
tokens and old credit fades; it is merged once it has earned more than a merge costs and dominates,
and unmerged once it no longer does. Between the two shares nothing changes, so that traffic which
wavers does not make it go back and forth. Knows names and tokens; knows no tensors, files or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

TICK_S = 1.0
FADE = 0.9  # of what is remembered, per tick: half of it is seven seconds old
SAVED = 0.04  # of a token's time, when its adapter is merged (docs/performance.md)
COST_TOKENS = 400.0  # what a merge takes, as tokens of forward
MERGE_SHARE, UNMERGE_SHARE = 0.5, 0.25  # of all tokens of the last while

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """Names to merge, the most worth it first, and names to unmerge."""

    merge: list[str]
    unmerge: list[str]


@dataclass(eq=False)
class Credits:
    """The traffic so far. tokens fade by FADE a tick, as credit does."""

    tokens: Counter[str] = field(default_factory=Counter)
    credit: Counter[str] = field(default_factory=Counter)

    def tick(self, served: Mapping[str, int], merged: set[str]) -> Change:
        """served: each adapter's tokens since the last tick, the base's under its own name."""
        for name in {*self.tokens, *served}:
            self.tokens[name] = self.tokens[name] * FADE + served.get(name, 0)  # type: ignore[assignment]
            self.credit[name] = self.credit[name] * FADE + SAVED * served.get(name, 0)  # type: ignore[assignment]
            if self.tokens[name] < 1:
                del self.tokens[name], self.credit[name]
        total = sum(self.tokens.values()) or 1
        share = {name: tokens / total for name, tokens in self.tokens.items()}
        worth = [
            name
            for name, credit in self.credit.most_common()
            if name not in merged and credit >= COST_TOKENS and share[name] >= MERGE_SHARE
        ]
        return Change(worth, [n for n in merged if share.get(n, 0) < UNMERGE_SHARE])


@dataclass(eq=False)
class AutoMerge:
    """allowed: whether the name may be merged by traffic. is_merged: whether it is now, whoever did it.
    served: counted by whoever answers.

    merge raises what keeps a name from being merged; it is then left alone.
    """

    allowed: Callable[[str], bool]
    is_merged: Callable[[str], bool]
    merge: Callable[[str], Awaitable[object]]
    unmerge: Callable[[str], Awaitable[object]]
    served: Counter[str] = field(default_factory=Counter)
    merged: set[str] = field(default_factory=set)
    _credits: Credits = field(default_factory=Credits)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        served, self.served = self.served, Counter()
        self.merged = set(filter(self.is_merged, self.merged))  # a PUT or unmerge ends it as well
        change = self._credits.tick(served, self.merged)
        forbidden = [name for name in self.merged if not self.allowed(name)]
        for name in {*change.unmerge, *forbidden}:
            self.merged.discard(name)
            await self._try(self.unmerge, name, "unmerged: it no longer dominates")
        for name in change.merge:
            if self.allowed(name) and await self._try(self.merge, name, "merged: it dominates"):
                self.merged.add(name)

    async def _try(self, change: Callable[[str], Awaitable[object]], name: str, what: str) -> bool:
        try:
            await change(name)
        except Exception as error:  # deleted meanwhile, or no memory left for a copy
            log.info("adapter %s is not changed: %s", name, error)
            return False
        log.info("adapter %s is %s", name, what)
        return True
