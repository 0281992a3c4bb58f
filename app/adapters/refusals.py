"""Why an upload is not served: every problem found in it, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `tensor` names the tensor or file where there is one."""

    reason: str
    tensor: str | None = None


class AdapterRejected(Exception):
    """An upload that is not served, with every problem found."""

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.problems = problems or []


class UploadTooLarge(Exception):
    """What an upload holds, or unpacks to, is over the cap."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the upload is over the cap of {max_bytes:,} bytes (MAX_ADAPTER_BYTES)")


class UnsupportedMedia(Exception):
    """A content type that no adapter comes in."""
