"""Why a call is not answered, before the model has seen it. What an HTTP client is told:
api/errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence


class Invalid(Exception):
    """One thing that was asked for is wrong. name: the member or parameter; reason: goes on from
    it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason


class WrongHead(Invalid):
    """The adapter has a head, and not of the sort that the call needs."""


class Ambiguous(Exception):
    """Two things that were asked for contradict each other."""


class Forbidden(Exception):
    """The caller's key may not use the adapter, whether it exists or not."""

    def __init__(self, adapter: str) -> None:
        super().__init__(f"this key may not use the adapter {adapter!r}")


class TooManyInputs(Exception):
    """More inputs, times adapters, than one request may have."""


class NoHead(Exception):
    """Labels are asked of an adapter without a head. adapters: some that have one."""

    def __init__(self, message: str, adapters: Sequence[str]) -> None:
        super().__init__(message)
        self.adapters = adapters
