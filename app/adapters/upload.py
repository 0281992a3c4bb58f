"""An untrusted upload: a body on disk -> the adapter files in it, checked before anything is read.

Knows archives and the safetensors header; knows nothing of LoRA. No pickle is ever opened.
"""

from __future__ import annotations

import json
import math
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import safetensors
import torch
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
ADAPTER_FILES = (WEIGHTS, CONFIG, MODEL_CONFIG)

MAX_HEADER_BYTES = 8 << 20  # 20,000 tensors with long names; an adapter has some hundreds
MAX_TENSORS = 20_000
MAX_JSON_BYTES = 1 << 20
MAX_ARCHIVE_ENTRIES = 1_000
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `tensor` names the tensor or file where there is one."""

    reason: str
    tensor: str | None = None


class AdapterRejected(Exception):
    """An upload that is not served, with every problem found."""

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.problems = problems or []


class UploadTooLarge(Exception):
    """What an upload holds, or unpacks to, is over the cap."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the upload is over the cap of {max_bytes:,} bytes (MAX_ADAPTER_BYTES)")


class UnsupportedMedia(Exception):
    """A content type that no adapter comes in."""


def unpack(body: Path, content_type: str, folder: Path, max_bytes: int) -> list[str]:
    """Put the adapter files of `body` into `folder`; returns the names that were left aside.

    multipart by its content type, archives and bare safetensors by their first bytes.
    Raises AdapterRejected, UploadTooLarge, UnsupportedMedia.
    """
    kind = content_type.split(";", maxsplit=1)[0].strip().lower()
    if kind == "multipart/form-data":
        return _unpack_multipart(body, content_type, folder)
    if kind == "application/json" or kind.startswith(("text/", "image/", "audio/", "video/")):
        raise UnsupportedMedia(
            f"an adapter does not come as {kind}: send the .safetensors bytes "
            "(application/octet-stream), multipart/form-data, or a tar or zip of a PEFT folder"
        )
    with body.open("rb") as file:
        start = file.read(512)
    if start[:4] == b"PK\x03\x04":
        left = _unpack_zip(body, folder, max_bytes)
    elif start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
        left = _unpack_tar(body, folder, max_bytes)
    else:
        _refuse_by_first_bytes(start)
        body.rename(folder / WEIGHTS)
        return []
    return left


def _refuse_by_first_bytes(start: bytes) -> None:
    """Say what a file that is no safetensors is, where its first bytes tell."""
    text = start.lstrip()[:64].lower()
    if not start:
        raise AdapterRejected("the upload is empty")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise AdapterRejected(
            "this is a pickle (torch.save), which can run code and is never opened: "
            "save the adapter with safetensors (PEFT: save_pretrained(safe_serialization=True))"
        )
    if text.startswith(b"version https://git-lfs"):
        raise AdapterRejected("this is a git-lfs pointer, not the file itself: run 'git lfs pull'")
    if text.startswith((b"<!doctype", b"<html")):
        raise AdapterRejected("this is an HTML page, not a safetensors file")


def _keep(name: str) -> str | None:
    """The adapter file that an archive's or form's name stands for, or None."""
    base = PurePosixPath(name.replace("\\", "/")).name
    if base == WEIGHTS or base in ADAPTER_FILES:
        return base
    return None


def _refuse_if_only_pickle(folder: Path, left: list[str]) -> None:
    if (folder / WEIGHTS).exists():
        return
    pickles = [name for name in left if name.endswith((".bin", ".pt", ".pth", ".pkl", "data.pkl"))]
    if pickles:
        raise AdapterRejected(
            f"{pickles[0]} is a pickle, which can run code and is never opened: send "
            f"{WEIGHTS} (PEFT: save_pretrained(safe_serialization=True))"
        )
    raise AdapterRejected(f"no {WEIGHTS} in the upload; it holds {', '.join(left) or 'no files'}")


def _unpack_multipart(body: Path, content_type: str, folder: Path) -> list[str]:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise AdapterRejected("the multipart body has no boundary in its Content-Type")
    left: list[str] = []
    seen: set[str] = set()

    def on_file(file: Any) -> None:
        names = [n.decode("utf-8", "replace") for n in (file.field_name, file.file_name) if n]
        name = next((kept for kept in map(_keep, names) if kept), None)
        bare = next((n for n in names if n.endswith(".safetensors")), None)
        target = name or (WEIGHTS if bare else None)
        if target is None:
            left.append(names[-1] if names else "?")
        elif target in seen:
            raise AdapterRejected(f"the upload holds {target} twice")
        else:
            seen.add(target)
            file.file_object.seek(0)
            with (folder / target).open("wb") as out:
                shutil.copyfileobj(file.file_object, out, CHUNK_BYTES)
        file.close()

    def on_field(field: Any) -> None:
        name = (field.field_name or b"?").decode("utf-8", "replace")
        raise AdapterRejected(
            f"the form's text field {name!r} is not a file: send files as -F {name}=@file, and what "
            "is said about the adapter in the query, e.g. ?alpha=16"
        )

    config = {"UPLOAD_DIR": str(body.parent), "MAX_MEMORY_FILE_SIZE": CHUNK_BYTES}
    try:
        parser = FormParser(
            "multipart/form-data",
            on_field,
            on_file,
            boundary=boundary,
            config=config,
        )
        with body.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise AdapterRejected(f"the multipart body cannot be read: {error}") from None
    _refuse_if_only_pickle(folder, left)
    return left


def _unpack_zip(body: Path, folder: Path, max_bytes: int) -> list[str]:
    left: list[str] = []
    room = max_bytes
    try:
        with zipfile.ZipFile(body) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            _check_entries([e.filename for e in entries])
            for entry in entries:
                name = _keep(entry.filename)
                if name is None:
                    left.append(entry.filename)
                    continue
                with archive.open(entry) as source:
                    room -= _copy_capped(source, folder / name, room, max_bytes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise AdapterRejected(f"the zip cannot be read: {error}") from None
    _refuse_if_only_pickle(folder, left)
    return left


def _unpack_tar(body: Path, folder: Path, max_bytes: int) -> list[str]:
    left: list[str] = []
    names: list[str] = []
    room = max_bytes
    try:
        with tarfile.open(body, "r:*") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg():
                    raise AdapterRejected(
                        f"{member.name!r} in the tar is a link or device, not a file"
                    )
                names.append(member.name)
                _check_entries(names)
                room -= 0 if _keep(member.name) else member.size  # skipped bytes are read too
                name = _keep(member.name)
                source = archive.extractfile(member)
                if room < 0:
                    raise UploadTooLarge(max_bytes)
                if name is None or source is None:
                    left.append(member.name)
                    continue
                room -= _copy_capped(source, folder / name, room, max_bytes)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise AdapterRejected(f"the tar cannot be read: {error}") from None
    _refuse_if_only_pickle(folder, left)
    return left


def _check_entries(names: list[str]) -> None:
    """Refuse names that point outside, doubled adapter files and endless lists."""
    if len(names) > MAX_ARCHIVE_ENTRIES:
        raise AdapterRejected(f"the archive holds more than {MAX_ARCHIVE_ENTRIES} files")
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise AdapterRejected(f"{name!r} in the archive points outside of it")
    kept = [k for k in map(_keep, names) if k]
    for name in set(kept):
        if kept.count(name) > 1:
            raise AdapterRejected(
                f"the archive holds {name} more than once: send one adapter's folder"
            )


def _copy_capped(source: IO[bytes], target: Path, room: int, max_bytes: int) -> int:
    """Copy at most `room` bytes; what an archive says of its sizes is not believed."""
    size = 0
    with target.open("xb") as out:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > room:
                raise UploadTooLarge(max_bytes)
            out.write(chunk)
    return size


@dataclass(frozen=True, eq=False)
class Tensors:
    """A checked safetensors file, read: name -> tensor in the file's dtype, and its metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    file_bytes: int


def read_tensors(path: Path) -> Tensors:
    """Check the header under limits, then the values, then hand the tensors over.

    Raises AdapterRejected with every problem of the file: duplicate names, ranges that overlap
    or leave gaps, odd dtypes, zero sizes, NaN and infinity.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _refuse_by_first_bytes(file.read(512))
        file.seek(0)
        header, start = _read_header(file, size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterRejected("the safetensors __metadata__ is not a map of strings")
    problems = list(_header_problems(header, size - start))
    if problems:
        raise AdapterRejected("the safetensors header is damaged", problems)
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise AdapterRejected(f"safetensors cannot read the file: {error}") from None
    problems = [
        Problem("holds NaN or infinity", name)
        for name, tensor in tensors.items()
        if not torch.isfinite(tensor).all()
    ]
    if problems:
        raise AdapterRejected("some tensors hold values that are not finite", problems)
    return Tensors(tensors, metadata, size)


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    """(header, where the tensors' bytes begin)."""
    raw = file.read(8)
    length = int.from_bytes(raw, "little")
    if len(raw) < 8 or length > size - 8:
        raise AdapterRejected("this is no safetensors file, or a truncated one")
    if length > MAX_HEADER_BYTES:
        raise AdapterRejected(f"the safetensors header is over {MAX_HEADER_BYTES:,} bytes")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = (
                sorted({n for n in names if names.count(n) > 1})[:5] if len(names) < 2000 else []
            )
            raise AdapterRejected(
                "the safetensors header names a tensor more than once",
                [Problem("appears more than once", n) for n in doubled],
            )
        return found

    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        raise AdapterRejected("the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise AdapterRejected("the safetensors header is not a JSON object")
    if len(header) > MAX_TENSORS:
        raise AdapterRejected(f"the file holds more than {MAX_TENSORS:,} tensors")
    if not header.keys() - {"__metadata__"}:
        raise AdapterRejected("the file holds no tensor")
    return header, 8 + length


def _header_problems(header: dict[str, Any], data_bytes: int) -> Iterator[Problem]:
    """Every tensor's dtype, shape and range; ranges must tile the data without gap or overlap."""
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            well_formed = all(type(n) is int and 0 <= n <= data_bytes for n in [*shape, begin, end])
        except (KeyError, TypeError, ValueError):
            well_formed = False
        if not well_formed:
            yield Problem(
                "its header entry is malformed, or reaches past the end of the file", name
            )
        elif dtype not in DTYPES:
            yield Problem(f"dtype {dtype!s:.20} is none of {', '.join(DTYPES)}", name)
        elif 0 in shape or not shape:
            yield Problem(f"has no elements or no dimension (shape {shape})", name)
        elif math.prod(shape) * DTYPES[dtype] != end - begin:
            yield Problem(f"shape {shape} of {dtype} does not fill its {end - begin} bytes", name)
        else:
            ranges.append((begin, end))
    if len(ranges) == len(header):
        ranges.sort()
        edges = [0, *(end for _, end in ranges)]
        if any(begin != edge for (begin, _), edge in zip(ranges, edges, strict=False)):
            yield Problem("the tensors' byte ranges overlap or leave gaps")
        elif edges[-1] != data_bytes:
            yield Problem(
                f"the tensors end at byte {edges[-1]} of {data_bytes}: truncated, or trailing bytes"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from an upload. Raises AdapterRejected."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise AdapterRejected(f"{path.name} is over {MAX_JSON_BYTES:,} bytes")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError):
        raise AdapterRejected(f"{path.name} is not JSON") from None
    if not isinstance(found, dict):
        raise AdapterRejected(f"{path.name} is not a JSON object")
    return found
