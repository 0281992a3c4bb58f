"""How far a training is, with the time that is left, on the terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Bar:
    """A bar for each stage on stderr, none where that is no terminal; and lines that stay."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begins(self, what: str, total: int) -> None:
        """A stage of total steps."""
        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(total=total, desc=what, disable=None, dynamic_ncols=True)

    def advances(self, steps: int) -> None:
        """Some of them are done."""
        if self._bar is not None:
            self._bar.update(steps)

    def says(self, words: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(words, file=sys.stderr)
