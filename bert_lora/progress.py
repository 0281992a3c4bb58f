"""A bar on stderr: how many texts are done, how fast, how long it still takes."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Bar:
    """tqdm's, where it is shown. total: None where nobody knows."""

    def __init__(self, total: int | None, *, shown: bool, done: int = 0) -> None:
        self._bar: Any = None
        if shown:
            from tqdm.auto import tqdm  # 0.1 s

            self._bar = tqdm(total=total, initial=done, unit=" texts", unit_scale=True)

    def add(self, count: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.update(count)

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
