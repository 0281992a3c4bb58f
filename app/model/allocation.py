"""Memory that the process has once had, it keeps: activations are allocated without page faults.

glibc gives each thread a heap of its own and returns its large blocks to the system as soon as they
are free, so that every layer's output would be zeroed by the kernel anew: a third of a forward on
the model's threads (docs/decisions/0006). Adapters do not live there (adapters/adapter.py).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT_BYTES = 1 << 30  # free at the top of the heap before any of it is given back
LARGEST_BYTES = 32 << 20  # glibc's own limit for blocks that come from the heap


def keep_memory() -> None:
    """For the whole process, once, before the model's threads start. Does nothing without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
