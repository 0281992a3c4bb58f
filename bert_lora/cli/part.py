"""What a run has done so far: OUTPUT.part, and OUTPUT.part.json, which says how much of it counts.

A run that was killed is taken up again there. Knows bytes and texts; knows no format.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from bert_lora.cli.connection import BadInput

KEEP_EVERY_S = 1.0


class Part:
    """rows: how many are done, those of the run before too. stamps: the versions that answered.

    asked: what the runs that share a part have in common.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
        """Raises BadInput where the part is another run's."""
        self.path = output.with_name(f"{output.name}.part")
        self._note = output.with_name(f"{output.name}.part.json")
        self._asked, self._digest = dict(asked), hashlib.sha256()
        before = self._before() if resume else {}
        self.rows, size = int(before.get("rows", 0)), int(before.get("bytes", 0))
        self.stamps: set[str] = set(before.get("stamps", ()))
        self._texts = before.get("texts", self._digest.hexdigest())
        if not before:
            self._note.unlink(missing_ok=True)
        self._file = self.path.open("r+b" if before else "w+b")
        self._file.truncate(size)
        self._file.seek(size)
        self._kept, self._caught_up = time.monotonic(), False

    @staticmethod
    def begun(output: Path) -> bool:
        """Whether a run of this output was cut off."""
        return output.with_name(f"{output.name}.part.json").exists()

    def _before(self) -> dict[str, Any]:
        """The note of the run before; {}: there is none."""
        if not (self._note.exists() and self.path.exists()):
            return {}
        note: dict[str, Any] = orjson.loads(self._note.read_bytes())
        if note["asked"] != self._asked:
            raise BadInput(
                f"{self.path} was begun with other options, {note['asked']}: repeat those, or "
                "leave --resume out to begin anew"
            )
        return note

    def behind(self, texts: Iterator[str]) -> Iterator[str]:
        """The texts that are still to be done. Raises BadInput where those before are others."""
        for text in islice(texts, self.rows):
            self._digest.update(_counted(text))
        if self._digest.hexdigest() != self._texts:
            raise BadInput(
                f"the input's first {self.rows} texts are not those that {self.path} was made of: "
                "leave --resume out to begin anew"
            )
        self._caught_up = True
        return texts

    def write(self, texts: Sequence[Any], content: bytes) -> None:
        """Append what these texts gave."""
        self._file.write(content)
        for text in texts:
            self._digest.update(_counted(text))
        self.rows += len(texts)
        if time.monotonic() > self._kept + KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """What is written counts from here on, whatever happens to this process."""
        self._file.flush()
        os.fsync(self._file.fileno())
        note = {
            "rows": self.rows,
            "bytes": self._file.tell(),
            "texts": self._digest.hexdigest(),
            "stamps": sorted(self.stamps),
            "asked": self._asked,
        }
        new = self._note.with_name(f"{self._note.name}.new")
        new.write_bytes(orjson.dumps(note))
        new.replace(self._note)
        self._kept = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes that are written."""
        return self._file.tell()

    def patch(self, content: bytes) -> None:
        """Write over its first bytes."""
        self._file.seek(0)
        self._file.write(content)

    def close(self) -> None:
        """All of it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def remove(self) -> None:
        """Nothing is to be resumed."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unless all was done, what was is kept for a run that resumes this one."""
        if self._file.closed:
            return
        if self._caught_up:  # else nothing was added to the part
            self.keep()
        self._file.close()
        if self.rows == 0:
            self.remove()


def _counted(text: str) -> bytes:
    """As it is digested: with its length, so that two texts are not one."""
    content = text.encode()
    return b"%d:%b" % (len(content), content)
