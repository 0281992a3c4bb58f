"""A multipart form's body -> the adapter files in it. Knows nothing of LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from app.adapters.files import WEIGHTS, adapter_file, place, refuse_if_only_pickle
from app.adapters.upload import CHUNK_BYTES, AdapterRejected

MAX_LEFT = 1_000
MAX_HEADER_BYTES = 16 << 10  # of one part; a name and a file name


def unpack_form(body: Path, content_type: str, folder: Path) -> list[str]:
    """Put the adapter files of a multipart body into `folder`; returns the names left aside.

    Raises AdapterRejected.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise AdapterRejected("the multipart body has no boundary in its Content-Type")
    form = _Form(folder)
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
    refuse_if_only_pickle(folder, form.left)
    return form.left


@dataclass(eq=False)
class _Form:
    """The parser's callbacks: each part's bytes go straight to its file, or nowhere."""

    folder: Path
    left: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
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
        target = next((kept for kept in map(adapter_file, names) if kept), None)
        if target is None and any(name.endswith(".safetensors") for name in names):
            target = WEIGHTS
        if target is None:
            self.left.append(names[-1][:200])
            if len(self.left) > MAX_LEFT:
                raise AdapterRejected(f"the form holds over {MAX_LEFT} files that are no adapter's")
            return
        if target in self._seen:
            raise AdapterRejected(f"the upload holds {target} twice")
        self._seen.add(target)
        self._file = place(self.folder, target).open("wb")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def end_part(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
