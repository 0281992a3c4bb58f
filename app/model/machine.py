"""What the machine gives this process: memory that it keeps, memory that is free, cores, a GPU.

With keep_memory activations are allocated without page faults. Otherwise glibc returns large blocks
and heaps to the system as soon as they are free, and the kernel zeroes every layer's output anew
(docs/decisions/0006, 0031). Adapters do not live there (adapters/values.py). Knows no models.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # version 2
GPUS = (Path("/dev/nvidia0"), Path("/dev/dxg"))  # what a driver shows of the first; WSL's
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
SLACK_BYTES = 1 << 30  # free at the top of the heap before any of it is given back
PRIMITIVES = "256"  # oneDNN keeps 0.6 MB for each row count of each layer, 1,024 of them by default
LARGEST_BYTES = 32 << 20  # glibc's own limit for blocks that come from the heap
HEAP_BYTES = (
    64 << 20
)  # of a thread's heap: with so much to spare none is given back once it is free
TORCHS_CORES = torch.get_num_threads()  # as imported: whoever sets it later means a thread


def keep_memory() -> None:
    """For the whole process, once, before the first product. The heap's part needs glibc."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
    mallopt(M_TRIM_THRESHOLD, SLACK_BYTES)
    mallopt(M_TOP_PAD, HEAP_BYTES)


def give_back_memory() -> None:
    """What is free in the heap, which keep_memory keeps: once, after more than is needed again."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes that are free now where adapters live: on the device, or in this container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _available()
    try:
        limit, used = (
            int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return free
    return min(free, limit - used)


def gpu_why_not() -> str | None:
    """Why a GPU that is here does not serve, in words; None where none is, or torch can use it."""
    if torch.cuda.is_available() or not any(gpu.exists() for gpu in GPUS):
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # a driver that is too old, or a torch without CUDA
        return f"torch {torch.__version__} cannot use the GPU that is here ({first_line(error)})"
    return None


def memory_limit() -> int:
    """Bytes that this process may have: its container's limit, or the machine's memory."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def first_line(error: BaseException) -> str:
    """An error's message, without the page of advice and traces that torch and compilers add."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device; to a GPU from pinned memory, without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cores() -> int:
    """How many cores this process may use: torch's count, or the container's quota if less."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(TORCHS_CORES, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or no quota ("max")
        return TORCHS_CORES


def _available() -> int:
    """The kernel's estimate in bytes, page cache included; without one, enough for a small base."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    return int(match[1]) << 10 if match else 4 << 30
