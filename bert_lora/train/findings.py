"""What is wrong with a data file, with the numbers of its rows."""

from __future__ import annotations

MOST_ROWS = 5  # named for each reason
MOST_REASONS = 12


class BadData(Exception):
    """The file cannot be trained on. The message has a line for each reason, with its rows."""


class Findings:
    """Rows by what is wrong with them, in the order in which they were found."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._rows: dict[str, list[int]] = {}

    def add(self, reason: str, row: int | None = None) -> None:
        """row: counted from 1; None where it is about the whole file."""
        rows = self._rows.setdefault(reason, [])
        if row is not None:
            rows.append(row)

    def refuse(self) -> None:
        """Raises BadData where anything was found."""
        if self._rows:
            raise BadData("\n".join([f"{self.source} cannot be trained on:", *self.lines()]))

    def lines(self) -> list[str]:
        """One for each reason."""
        told = [
            f"  {_rows(rows)}{reason}" for reason, rows in list(self._rows.items())[:MOST_REASONS]
        ]
        more = len(self._rows) - MOST_REASONS
        return [*told, f"  and {more} more kinds of faults"] if more > 0 else told


def _rows(rows: list[int]) -> str:
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:MOST_ROWS]))
    more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}: "
