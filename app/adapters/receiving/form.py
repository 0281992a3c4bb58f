"""A multipart form's body -> the adapter files in it. Knows nothing of LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from app.adapters.receiving.own_files import could_be_own
from app.adapters.receiving.received import Received
from app.adapters.receiving.upload import CHUNK_BYTES
from app.adapters.refusals import AdapterRejected

MAX_HEADER_BYTES = 16 << 10  # of one part; a name and a file name


def unpack_form(body: Path, content_type: str, received: Received) -> None:
    """Take the files of a multipart body. Raises AdapterRejected."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise AdapterRejected("the multipart body has no boundary in its Content-Type")
    form = _Form(received)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        with body.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                parser.write(chunk)
        parser.finalize()
        if parser.state != MultipartState.END:
            raise AdapterRejected(
                "the multipart body is cut short: its closing boundary is missing"
            )
    except FormParserError as error:
        raise AdapterRejected(f"the multipart body cannot be read: {error}") from None
    finally:
        form.end_part()


@dataclass(eq=False)
class _Form:
    """The parser's callbacks: each part's bytes go straight to its file, or nowhere."""

    received: Received
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _file: IO[bytes] | None = None

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self.end_part,
        }

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._refuse_long()

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._refuse_long()

    def _refuse_long(self) -> None:
        held = sum(len(k) + len(v) for k, v in self._headers.items())
        if held + len(self._name) + len(self._value) > MAX_HEADER_BYTES:
            raise AdapterRejected("a part of the form has endless headers")

    def _on_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers(self) -> None:
        said = parse_options_header(self._headers.get(b"content-disposition", b""))[1]
        names = [said[k].decode("utf-8", "replace") for k in (b"name", b"filename") if k in said]
        if b"filename" not in said:
            raise AdapterRejected(
                f"the form's text field {(names or ['?'])[0]!r:.80} is not a file: send files as "
                "-F NAME=@file, and what is said about the adapter in the query, e.g. ?alpha=16"
            )
        target = self.received.place(_path(names), names[-1][:200])
        self._file = None if target is None else target.open("wb")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def end_part(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _path(names: list[str]) -> str:
    """A part's path: its own name's or its file name's, whichever is an adapter file's; of two, the longer.

    Browsers send a folder's files under one name, with paths in their file names.
    """
    paths = ["/".join(_parts(name)) for name in names]
    own = [path for path in paths if could_be_own(path)] or paths[-1:]
    return max(own, key=lambda path: path.count("/"))


def _parts(name: str) -> list[str]:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "..")] or ["?"]
