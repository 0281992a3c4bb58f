"""How a forward fails: on its input, for want of memory, with NaN, or with its device.

Knows errors and their words for the client; knows no sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

NOT_FINITE = "the answer is NaN or infinite; the adapter's weights, or DTYPE, are too large for it"
SHORT_OF_MEMORY = "the device has no memory for it now; send it again, or a shorter one"
BUG = "the model failed on it; this is a bug, please report it"
# In the errors of what calls CUDA: torch, its libraries, Triton.
CUDA = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")


class ForwardFailed(Exception):
    """The model failed on this very input, alone as well. index: which one; None: on any."""

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason)
        self.index = index


class OutOfMemory(ForwardFailed):
    """The device has no memory even for this input alone."""


class NotFinite(ForwardFailed):
    """The answer to this input holds NaN or infinity."""


class DeviceLost(ForwardFailed):
    """The device answers nothing any more, until the process starts anew."""


def lost_its_device(error: BaseException, wait: Callable[[], object]) -> bool:
    """Whether this error has ended CUDA's context: every later call would fail of it as well.

    An illegal address does, and a failed assert or launch; a launch that asks for too much does
    not. The names of the errors don't tell them apart, so the device is tried once more: `wait`
    waits for what it runs, and raises where the device is lost.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if not isinstance(error, torch.AcceleratorError) and not any(s in str(error) for s in CUDA):
        return False
    try:
        wait()
    except Exception:
        return True
    return False


def failure_of(index: int, error: BaseException, lost: str | None) -> ForwardFailed:
    """What the client of the request's index-th input learns.

    lost: the error that ended the device's context, where one did.
    """
    if lost is not None:
        return DeviceLost(f"the device is lost ({lost}): this process is about to end")
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(SHORT_OF_MEMORY, index)
    return ForwardFailed(BUG, index)


def not_finite(index: int) -> NotFinite:
    """The same where the answer holds NaN or infinity."""
    return NotFinite(NOT_FINITE, index)
