"""Typed reads of an untrusted JSON object: a wrong type becomes a problem, not an exception."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.adapters.config.sentence import MAX_PROMPT_LENGTH
from app.adapters.refusals import Problem

LARGEST = 1 << 63  # what a random generator's seed and a tensor's size can be


def _is_number(value: Any) -> bool:
    """A finite one, that fits a float: JSON's integers have no end."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value + 0))
    except (TypeError, OverflowError):
        return False


@dataclass(frozen=True)
class Fields:
    """Each read gives None for what is not said, and for what is wrong."""

    fields: Mapping[str, Any]
    problems: list[Problem]

    def _fault(self, name: str, wanted: str) -> None:
        self.problems.append(Problem(f"{name}={self.fields[name]!r:.60} is not {wanted}"))

    def number(self, name: str) -> float | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if not _is_number(value):
            self._fault(name, "a number")
            return None
        return float(value)

    def integer(self, name: str, least: int = 1) -> int | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if type(value) is not int or not least <= value < LARGEST:
            self._fault(name, f"an integer from {least} to {LARGEST - 1}")
            return None
        return value

    def boolean(self, name: str) -> bool | None:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, bool):
            self._fault(name, "true or false")
            return None
        return value

    def one_of(self, name: str, allowed: tuple[str, ...]) -> Any:
        value = self.fields.get(name)
        if value is not None and not any(value == one for one in allowed):
            self._fault(name, f"one of {', '.join(allowed)}")
            return None
        return value

    def patterns(self, name: str) -> dict[str, Any]:
        value = self.fields.get(name) or {}
        good = isinstance(value, dict) and all(_is_number(number) for number in value.values())
        if not good:
            self._fault(name, "a map from module names to numbers")
            return {}
        return dict(value)

    def texts(self, name: str) -> dict[str, str] | None:
        value = self.fields.get(name)
        if value is not None and not (
            isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        ):
            self._fault(name, "a map from names to texts")
            return None
        if value and any(len(text) > MAX_PROMPT_LENGTH for text in value.values()):
            self._fault(name, f"a map to texts of up to {MAX_PROMPT_LENGTH:,} characters")
            return None
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if not (isinstance(value, list) and all(type(n) is int and n > 0 for n in value)):
            self._fault(name, "a list of positive integers")
            return None
        return tuple(value)
