"""Why an upload is not served: every problem of it, in words.

Two ways to say that something is wrong, and no third. `raise AdapterRejected` where reading cannot go
on. `Problems.add` where it can, so that the uploader sees all the rest too; code that looks at one thing
alone raises Misfit, and `Problems.caught` adds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `tensor` names the tensor or file where there is one."""

    reason: str
    tensor: str | None = None


class AdapterRejected(Exception):
    """An upload that is not served, with all of its problems."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = list(problems)


class Misfit(Exception):
    """One thing that cannot be served: a layer's tensors, or a value. part: the tensor at fault."""

    def __init__(self, reason: str, part: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.part = part


def unnamed(part: str | None) -> str | None:
    """A part's name where there is no file to name it."""
    return part


class Problems:
    """All that is wrong with one upload, in the order in which it was noticed."""

    def __init__(self, earlier: Iterable[Problem] = ()) -> None:
        self._problems = list(earlier)

    def add(self, reason: str, tensor: str | None = None) -> None:
        """Note one more; reading goes on."""
        self._problems.append(Problem(reason, tensor))

    @contextmanager
    def caught(self, name: Callable[[str | None], str | None] = unnamed) -> Iterator[None]:
        """Turn a Misfit raised inside into a problem. name: what the file calls the part at fault."""
        try:
            yield
        except Misfit as misfit:
            self.add(misfit.reason, name(misfit.part))

    def __len__(self) -> int:
        return len(self._problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)


class UploadTooLarge(Exception):
    """What an upload holds, or unpacks to, is over the cap."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the upload is over the cap of {max_bytes:,} bytes (MAX_ADAPTER_BYTES)")
