"""What an archive or a form brings, on disk until it is known which of it is the adapter's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from app.adapters.files import place
from app.adapters.receiving.own_files import could_be_own, own_files
from app.adapters.refusals import AdapterRejected

MAX_FILES = 1_000


@dataclass(eq=False)
class Received:
    """An upload's files by their paths in it. folder: holds them, numbered."""

    folder: Path
    _files: dict[str, Path] = field(default_factory=dict)
    _spelled: dict[str, str] = field(default_factory=dict)  # path -> what the upload called it

    def place(self, path: str, spelled: str) -> Path | None:
        """Where to write the file of this path; None: it is none of an adapter's.

        Raises AdapterRejected for a path that came before, and for endless lists.
        """
        if path in self._spelled:
            before = self._spelled[path]
            raise AdapterRejected(
                f"the upload holds {path!r:.200} twice"
                + (f", as {before!r:.200} and {spelled!r:.200}" if before != spelled else "")
            )
        self._spelled[path] = spelled
        if len(self._spelled) > MAX_FILES:
            raise AdapterRejected(f"the upload holds more than {MAX_FILES} files")
        if not could_be_own(path):
            return None
        self.folder.mkdir(exist_ok=True)
        self._files[path] = self.folder / str(len(self._files))
        return self._files[path]

    def settle(self, folder: Path, path: str | None) -> list[str]:
        """Move the adapter's files to `folder`; returns what was left aside, as the upload called it.

        path: which of the upload's folders; None: the one that has weights. Raises AdapterRejected.
        """
        own = own_files(list(self._spelled), path)
        for name, origin in own.files.items():
            self._files[origin].rename(place(folder, name))
        shutil.rmtree(self.folder, ignore_errors=True)
        return [self._spelled[aside] for aside in own.aside]
