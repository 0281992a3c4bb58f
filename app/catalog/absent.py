"""Names that a shared store did not have just now: asked for again, they are not looked for again.

Knows names and seconds; asks nothing.
"""

from __future__ import annotations

import time

KEPT_S = 0.5
MOST = 1_000


class Absent:
    """Touched from the event loop only."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, name: str) -> None:
        """It was not there."""
        now = time.monotonic()
        if len(self._until) >= MOST:
            self._until = {n: t for n, t in self._until.items() if t > now}
        self._until[name] = now + KEPT_S

    def __contains__(self, name: str) -> bool:
        return self._until.get(name, 0.0) > time.monotonic()

    def forget(self, name: str) -> None:
        """It may be there now."""
        self._until.pop(name, None)

    def clear(self) -> None:
        """All may be there now."""
        self._until.clear()
