"""A multipart form's body on disk -> the adapter files in it, by starlette's parser.

starlette's own way with files does not fit here: it would keep every part in memory or in the
system's temporary folder, all of them open until the end, 1,000 descriptors for a hostile form. So
each part's bytes go straight to a file of the upload's own folder, one open at a time, or nowhere
where no adapter has such a file. python-multipart bounds a part's headers (8 of 4 KiB), starlette
the number of parts. Knows nothing of LoRA.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from app.adapters.receiving.own_files import could_be_own
from app.adapters.receiving.received import MAX_FILES, Received
from app.adapters.receiving.upload import CHUNK_BYTES
from app.adapters.refusals import AdapterRejected


def unpack_form(body: Path, content_type: str, received: Received) -> None:
    """Take the files of a multipart body. Blocks; no event loop may run in this thread.

    The parser is a coroutine that waits for nothing but the next chunk, and those lie on the disk.
    Raises AdapterRejected.
    """
    form = _Form(content_type, _chunks(body), received)
    try:
        asyncio.run(form.parse())
    except MultiPartException as error:
        reason = error.__cause__ or error.message
        raise AdapterRejected(f"the multipart body cannot be read: {reason}") from None
    except ValueError as error:  # a charset that decodes no names
        raise AdapterRejected(f"the multipart body cannot be read: {error}") from None
    finally:
        form.on_part_end()
    if not form.ended:
        reason = "the multipart body is cut short: its closing boundary is missing"
        raise AdapterRejected(reason)


async def _chunks(body: Path) -> AsyncGenerator[bytes]:
    with body.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class _Form(MultiPartParser):
    """Receives the parser's callbacks. ended: the closing boundary came, which starlette can
    miss.
    """

    def __init__(
        self, content_type: str, chunks: AsyncGenerator[bytes], received: Received
    ) -> None:
        headers = Headers({"content-type": content_type})
        super().__init__(headers, chunks, max_files=MAX_FILES)
        self.ended = False
        self._received = received
        self._file: IO[bytes] | None = None

    def on_headers_finished(self) -> None:
        """Where the part goes. Raises AdapterRejected for a text field, and what `place` raises."""
        super().on_headers_finished()  # counts the files, and decodes the names
        part = self._current_part
        if part.file is None:
            raise AdapterRejected(
                f"the form's text field {part.field_name!r:.80} is not a file: send files as "
                "-F NAME=@file, and what is said about the adapter in the query, e.g. ?alpha=16"
            )
        part.file.file.close()  # starlette's own, still empty
        name = part.file.filename or ""
        target = self._received.place(_path([part.field_name, name]), name[:200])
        self._file = None if target is None else target.open("wb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """To the part's file."""
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def on_part_end(self) -> None:
        """Close the part's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_end(self) -> None:
        """The closing boundary."""
        self.ended = True


def _path(names: list[str]) -> str:
    """A part's path: its name's or its file name's, whichever is an adapter file's; of two the
    longer.

    Browsers send a folder's files under one name, with paths in their file names.
    """
    paths = ["/".join(_steps(name)) for name in names]
    own = [path for path in paths if could_be_own(path)] or paths[-1:]
    return max(own, key=lambda path: path.count("/"))


def _steps(name: str) -> list[str]:
    """The name's folders and file, without what would lead outside."""
    steps = PurePosixPath(name.replace("\\", "/")).parts
    return [step for step in steps if step not in ("/", "..")] or ["?"]
