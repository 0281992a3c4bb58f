"""What a client has changed itself, so that whichever server answers next, it answers with that.

Several servers on one store learn of each other's changes within a second or so. Knows no HTTP.
"""

from __future__ import annotations

import time

KEPT_S = 60.0  # long after every server has learned of it
MOST = 1_000  # names


class Revisions:
    """Of one client; used from one event loop."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, float]] = {}

    def note(self, name: str, revision: object) -> None:
        """revision: as the server has said it; a server that is older than revisions says none."""
        if revision is None:
            return
        now = time.monotonic()
        if len(self._of) >= MOST:
            self._of = {n: r for n, r in self._of.items() if r[1] > now}
        self._of[name] = int(str(revision)), now + KEPT_S

    def forget(self, name: str) -> None:
        """Whatever state of it will do."""
        self._of.pop(name, None)

    def at_least(self, name: str | None) -> dict[str, str]:
        """The header that asks for the name as this client has left it, or a later state."""
        revision, until = self._of.get(name or "", (0, 0.0))
        return {"X-Min-Revision": str(revision)} if until > time.monotonic() else {}
