"""Where a local store's writers work: folders in tmp/, and the lock that lets one change it.

Knows paths; knows no versions and no names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from app.catalog.disk import READ_ONLY, disk_errors
from app.catalog.store import StoreUnavailable, StoreUnusable

Errors = Callable[[], AbstractContextManager[None]]


class Workspace:
    """Threads and processes share it by flock: each call opens a descriptor of its own."""

    def __init__(self, root: Path, *, may_write: bool, errors: Errors = disk_errors) -> None:
        """What a killed process left in tmp/ is removed. errors: what is raised for OSError. Raises
        StoreUnusable.
        """
        self.may_write, self._errors = may_write, errors
        self._lock, self._tmp = root / "moving", root / "tmp"
        try:
            self._tmp.mkdir(parents=True, exist_ok=True)
            if may_write:
                self._empty()
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise StoreUnusable(f"the store's {self._tmp} cannot be emptied: {error}") from None

    def _empty(self) -> None:
        """Remove what nobody works in any more."""
        for path in self._tmp.iterdir():
            if not path.is_dir():
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
                _remove_unused(path)

    def refuse_read_only(self) -> None:
        """Raises StoreUnavailable where this server has not the store for itself."""
        if not self.may_write:
            raise StoreUnavailable(
                "the store was read-only when this server started, and may be another one's by "
                "now: start it again to change anything"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Of all threads and processes one at a time; not twice in one thread."""
        with disk_errors():
            lock = self._lock.open("a")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """As store.Store.receiving."""
        self.refuse_read_only()
        with self._errors():
            folder, descriptor = self._fresh_folder()
        try:
            with self._errors():
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def _fresh_folder(self) -> tuple[Path, int]:
        """A folder in tmp/ and the descriptor whose lock keeps another's start from emptying it."""
        self._tmp.mkdir(exist_ok=True)  # a cache may be emptied by hand
        while True:
            folder = Path(tempfile.mkdtemp(dir=self._tmp))
            with contextlib.suppress(FileNotFoundError):  # emptied before it was locked
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if folder.exists():
                    return folder, descriptor
                os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    """Remove the folder, unless its owner's lock says that it is worked in."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
