"""A bound for all bodies that are in memory together: each of them has its own cap, and there are
many.

A body may take a share of what is free, so that a few large stalled ones leave room for many small
ones. (Dynamic thresholds for a shared buffer: Choudhury and Hahne 1998.) Knows bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.api.errors import retry_after
from app.api.refusal import Refusal

LEAST_BYTES = 64 << 20
BODIES = 16  # of the largest size
SHARE = 4  # a body may be a quarter of what the others leave


@dataclass(eq=False)
class BodyMemory:
    """most: bytes of all bodies together; held: those in memory now."""

    most: int
    held: int = 0

    def take(self, own: int, more: int) -> None:
        """`more` bytes of a body that has `own` in memory already. Raises Refusal (429)."""
        if SHARE * (own + more) > self.most - (self.held - own):
            raise Refusal(
                429,
                "overloaded",
                "the bodies of all requests together take too much memory: send it again in a "
                "second, or in smaller parts",
                headers=retry_after(1),
            )
        self.held += more


def body_memory(max_body_bytes: int) -> BodyMemory:
    """For bodies of at most max_body_bytes each."""
    return BodyMemory(max(LEAST_BYTES, BODIES * max_body_bytes))
