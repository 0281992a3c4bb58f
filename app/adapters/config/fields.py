"""Typed reads of an untrusted JSON object: a wrong type becomes a problem, not an exception."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.adapters.refusals import Problems
from app.adapters.sentence import MAX_PROMPT_LENGTH

LARGEST = 1 << 63  # what a random generator's seed and a tensor's size can be


@dataclass(frozen=True, eq=False)
class Fields:
    """An object's members by type. None: missing, null or wrong; a wrong one is a problem."""

    values: Mapping[str, Any]
    problems: Problems

    def get(self, name: str) -> Any:
        """The member as it is, unchecked."""
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        """A text; anything else counts as missing, since no formula depends on it."""
        value = self.get(name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self.get(name)
        if value is None:
            return None
        return float(value) if self._fits(name, _is_number(value), "a number") else None

    def integer(self, name: str, least: int = 1) -> int | None:
        """An integer from `least`."""
        value: int | None = self.get(name)
        good = value is None or (type(value) is int and least <= value < LARGEST)
        return (
            value if self._fits(name, good, f"an integer from {least} to {LARGEST - 1}") else None
        )

    def boolean(self, name: str) -> bool | None:
        """true or false."""
        value: bool | None = self.get(name)
        good = value is None or isinstance(value, bool)
        return value if self._fits(name, good, "true or false") else None

    def like(self, name: str, default: Any) -> Any:
        """A value of its default's type (bool, int or float); the default where there is none."""
        if isinstance(default, bool):
            value: Any = self.boolean(name)
        else:
            value = self.integer(name, 0) if isinstance(default, int) else self.number(name)
        return default if value is None else value

    def one_of(self, name: str, allowed: tuple[str, ...]) -> Any:
        """One of these texts."""
        value = self.get(name)
        good = value is None or any(value == one for one in allowed)
        return value if self._fits(name, good, f"one of {', '.join(allowed)}") else None

    def numbers_by_name(self, name: str) -> dict[str, Any]:
        """A map from module names, or expressions for them, to numbers; {} where there is none."""
        value = self.get(name) or {}
        good = isinstance(value, dict) and all(map(_is_number, value.values()))
        return dict(value) if self._fits(name, good, "a map from module names to numbers") else {}

    def texts_by_name(self, name: str) -> dict[str, str] | None:
        """A map from names to texts as long as a prompt may be."""
        value: dict[str, str] | None = self.get(name)
        if value is None:
            return None
        good = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        if not self._fits(name, good, "a map from names to texts"):
            return None
        good = all(len(text) <= MAX_PROMPT_LENGTH for text in value.values())
        wanted = f"a map to texts of up to {MAX_PROMPT_LENGTH:,} characters"
        return value if self._fits(name, good, wanted) else None

    def positive_integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers from 1."""
        value = self.get(name)
        if value is None:
            return None
        good = isinstance(value, list) and all(type(n) is int and n > 0 for n in value)
        return tuple(value) if self._fits(name, good, "a list of positive integers") else None

    def _fits(self, name: str, good: bool, wanted: str) -> bool:
        """`good`; where it is False, a problem says what was wanted."""
        if not good:
            self.problems.add(f"{name}={self.values[name]!r:.60} is not {wanted}")
        return good


def _is_number(value: Any) -> bool:
    """A finite one, that fits a float: JSON's integers have no end."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value + 0))
    except (TypeError, OverflowError):
        return False
