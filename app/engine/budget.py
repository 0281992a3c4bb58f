"""How many tokens a batch may have: fewer where memory is short, and more again later.

Knows tokens; knows no sequences and no device.
"""

from __future__ import annotations

GROW_AFTER = 64  # batches in a row: so a forward in vain, to try more, is at most 1.5 % of them


class Budget:
    """tokens: of a batch now.

    Half of what memory was short for; doubled again, up to what it was, after GROW_AFTER batches
    that fill at least half of it. Memory that another process took comes back, and without growth
    a server would stay slow for ever.
    """

    def __init__(self, tokens: int, least: int) -> None:
        """least: one sequence, which always fits a batch."""
        self.tokens = self._full = max(tokens, least)
        self._least = least
        self._enough = 0

    def short(self, tokens: int) -> None:
        """Memory was short for a batch of so many. Its halves may fail alike, which is no news."""
        self.tokens, self._enough = max(self._least, min(self.tokens, tokens // 2)), 0

    def enough(self, tokens: int) -> None:
        """Memory was enough for a batch of so many."""
        if self.tokens == self._full or 2 * tokens < self.tokens:
            return
        self._enough += 1
        if self._enough >= GROW_AFTER:
            self.tokens, self._enough = min(2 * self.tokens, self._full), 0
