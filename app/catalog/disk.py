"""The disk under the store: what it refuses, by name; what is written, durably; one writer.

Knows paths; knows nothing of adapters.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.catalog.store import StoreFull, StoreUnavailable, StoreUnusable

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises StoreFull and StoreUnavailable in place of OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(
                f"the store takes no more ({error.strerror}): make room on its disk"
            ) from None
        what = "is read-only" if error.errno in READ_ONLY else "fails"
        log.error("the store's disk: %(error)s", {"error": str(error)})
        raise StoreUnavailable(
            f"the store's disk {what} ({error.strerror}); what it holds is served, and nothing "
            "can be changed until that is mended"
        ) from None


def fsync(path: Path) -> None:
    """A file's content, or which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(root: Path) -> Iterator[bool]:
    """Keep every other server off the store; a killed one's hold is gone with it.

    Gives whether this server has it: a store that cannot be written cannot be had, and is not to be
    written later.
    Raises StoreUnusable where another server has it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("a+")
    except OSError:
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise StoreUnusable(
                f"the store {root} is in use by process {lock.read().strip() or '?'}: stop that "
                "server, or give this one its own STORE"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk nobody is told who it is
            lock.truncate(0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield True
