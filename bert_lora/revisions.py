"""What a client has changed itself, so that whichever server answers next, it answers with that.

Several servers on one store learn of each other's changes within a second or so. Knows no HTTP.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping

KEPT_S = 60.0  # long after every server has learned of it
MOST = 1_000  # names
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


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

    def forget(self, names: Iterable[str]) -> None:
        """Whatever state of them will do."""
        for name in names:
            self._of.pop(name, None)

    def within(self, spelled: Iterable[str | None]) -> dict[str, int]:
        """Of names in these: each a name, name@version, a sum of such, or None for the base."""
        now = time.monotonic()
        names = dict.fromkeys(name for text in spelled for name in NAME.findall(text or ""))
        noted = {name: self._of[name] for name in names if name in self._of}
        return {name: revision for name, (revision, until) in noted.items() if until > now}


def header(revisions: Mapping[str, int]) -> dict[str, str]:
    """What asks for these names as they were left, or for a later state of them."""
    listed = ", ".join(f"{name}={revision}" for name, revision in revisions.items())
    return {"X-Min-Revision": listed} if listed else {}
