"""Which adapters /metrics names: the busiest ones; the rest are one. Knows names; knows no
metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

OTHERS = "_others"  # no adapter's name begins like this
TWICE = 2  # as busy as the least busy one that is named, before it takes its place
DECAY_AFTER = 100  # requests per named adapter, then all counts are halved


@dataclass(eq=False)
class Busiest:
    """most: how many are named. known: whether a name is served. dropped: told who is named no
    more.
    """

    most: int
    known: Callable[[str], bool]
    dropped: Callable[[str], None]
    _counts: Counter[str] = field(default_factory=Counter)
    _named: set[str] = field(default_factory=set)
    _seen: int = 0

    def label(self, name: str) -> str:
        """What the adapter's series are called."""
        if name not in self._named and self.known(name) and len(self._named) < self.most:
            self._named.add(name)
        return name if name in self._named else OTHERS

    def count(self, name: str) -> str:
        """One more request for the adapter; what it is counted under."""
        if not self.known(name):
            return OTHERS
        self._counts[name] += 1
        self._seen += 1
        if self._seen > DECAY_AFTER * (self.most + 1):
            self._fade()
        if name in self._named:
            return name
        if len(self._named) < self.most:
            self._named.add(name)
            return name
        least = min(self._named, key=self._counts.__getitem__, default=None)
        if least is None or self._counts[name] <= TWICE * self._counts[least]:
            return OTHERS
        self._named.discard(least)
        self.dropped(least)
        self._named.add(name)
        return name

    def forget(self, name: str) -> None:
        """The name is served no more."""
        self._counts.pop(name, None)
        self._named.discard(name)
        self.dropped(name)

    def _fade(self) -> None:
        self._seen = 0
        self._counts = Counter(
            {name: count // 2 for name, count in self._counts.items() if count > 1}
        )
