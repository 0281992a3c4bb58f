"""An untrusted file: a safetensors header under limits and finite values, or a small JSON text.

Knows one file at a time (archives: archive.py), and nothing of LoRA. No pickle is ever opened.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.adapters.refusals import AdapterRejected, Misfit, Problem, Problems

MAX_HEADER_BYTES = 2 << 20
MAX_TENSORS = 5_000  # DoRA with biases on every Linear of 48 layers has 1,500
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 8
MAX_JSON_BYTES = 1 << 20
MAX_GOLDEN_BYTES = 8 << 20
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CHUNK_BYTES = 1 << 20
PRUNED = re.compile(r"\.lora_[ABE](\.[^.]+)?$")  # AdaLoRA leaves nothing of some layers
PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
PACKED = {  # what archives begin with, that are not opened
    b"\xfd7zXZ\x00": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x04\x22\x4d\x18": "an lz4 archive",
    b"PK\x05\x06": "an empty zip",
}
TAKEN = "send the .safetensors bytes, multipart/form-data, or a tar, tar.gz or zip of a PEFT folder"


def another_kind(start: bytes) -> str | None:
    """What a file is that was sent for another, where its first bytes tell, and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: run 'git lfs pull'"
    if text.startswith((b"<!doctype", b"<html")):
        return "an HTML page, as a download gives that needs a login"
    packed = next((kind for magic, kind in PACKED.items() if start.startswith(magic)), None)
    return None if packed is None else f"{packed}, which is not opened: {TAKEN}"


def refuse_by_first_bytes(start: bytes) -> None:
    """Say what a file that is no safetensors is, where its first bytes tell."""
    if not start:
        raise AdapterRejected("the upload is empty")
    if kind := another_kind(start):
        raise AdapterRejected(f"this is {kind}")
    if start[8:9] == b"{":
        return  # as a safetensors header begins
    if start[:1] == b"\x80" and start[1:2] in PICKLE_PROTOCOLS:
        raise AdapterRejected(
            "this is a pickle (torch.save), which can run code and is never opened: "
            "save the adapter with safetensors (PEFT: save_pretrained(safe_serialization=True))"
        )
    if start.lstrip()[:1] in (b"{", b"["):
        raise AdapterRejected(f"this is JSON, without an adapter's weights: {TAKEN}")


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
        refuse_by_first_bytes(file.read(512))
        file.seek(0)
        header, start = _read_header(file, size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterRejected("the safetensors __metadata__ is not a map of strings")
    problems = Problems()
    _check_entries(header, size - start, problems)
    if problems:
        raise AdapterRejected("the safetensors header is damaged", problems)
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise AdapterRejected(f"safetensors cannot read the file: {error}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            problems.add("holds NaN or infinity", name)
    if problems:
        raise AdapterRejected("some tensors hold values that are not finite", problems)
    return Tensors(tensors, metadata, size)


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    """(header, where the tensors' bytes begin). Raises AdapterRejected."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise AdapterRejected("this is no safetensors file, or a truncated one")
    if length > MAX_HEADER_BYTES:
        raise AdapterRejected(f"the safetensors header is over {MAX_HEADER_BYTES:,} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_each_once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        raise AdapterRejected("the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise AdapterRejected("the safetensors header is not a JSON object")
    if len(header) > MAX_TENSORS:
        raise AdapterRejected(f"the file holds more than {MAX_TENSORS:,} tensors")
    if not header.keys() - {"__metadata__"}:
        raise AdapterRejected("the file holds no tensor")
    return header, 8 + length


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of the header. Raises AdapterRejected for a name that comes twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs] if len(pairs) < 2000 else []
        doubled = sorted({name for name in names if names.count(name) > 1})[:5]
        reason = "the safetensors header names a tensor more than once"
        raise AdapterRejected(reason, [Problem("appears more than once", n) for n in doubled])
    return members


def _check_entries(header: dict[str, Any], data_bytes: int, problems: Problems) -> None:
    """Every tensor's dtype, shape and range; ranges must tile the data without gap or overlap."""
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        with problems.caught(partial(_shown, name)):
            ranges.append(_range(name, entry, data_bytes))
    if problems:
        return
    ranges.sort()
    edges = [0, *(end for _, end in ranges)]
    if any(begin != edge for (begin, _), edge in zip(ranges, edges, strict=False)):
        problems.add("the tensors' byte ranges overlap or leave gaps")
    elif edges[-1] != data_bytes:
        end = f"the tensors end at byte {edges[-1]} of {data_bytes}"
        problems.add(f"{end}: truncated, or trailing bytes")


def _shown(name: str, _: str | None) -> str:
    """A tensor's name as a refusal can show it."""
    return ascii(name[:80])[1:-1]


def _range(name: str, entry: Any, data_bytes: int) -> tuple[int, int]:
    """Where one tensor's bytes begin and end. Raises Misfit for a header entry that is no good."""
    if len(name) > MAX_NAME_LENGTH or not name.isprintable() or ".." in name or "/" in name:
        raise Misfit("its name is no module's path")
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        well_formed = (
            isinstance(dtype, str)
            and isinstance(shape, list)
            and len(shape) <= MAX_DIMENSIONS
            and all(type(n) is int and 0 <= n <= data_bytes for n in [*shape, begin, end])
        )
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise Misfit("its header entry is malformed, or reaches past the end of the file")
    if dtype not in DTYPES:
        raise Misfit(f"dtype {dtype!s:.20} is none of {', '.join(DTYPES)}")
    if (0 in shape and not PRUNED.search(name)) or not shape:
        raise Misfit(f"has no elements or no dimension (shape {shape!s:.60})")
    if math.prod(shape) * DTYPES[dtype] != end - begin:
        raise Misfit(f"shape {shape!s:.60} of {dtype} does not fill its {end - begin} bytes")
    return begin, end


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from an upload. Raises AdapterRejected."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise AdapterRejected(f"{path.name} is not a JSON object")
    return value


def read_any_json(path: Path) -> Any:
    """A small JSON value from an upload. Raises AdapterRejected."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise AdapterRejected(f"{path.name} is over {MAX_JSON_BYTES:,} bytes")
    content = path.read_bytes()
    refuse_another_kind(content, path.name)
    try:
        return whole_text(json.loads(content.decode("utf-8-sig")))
    except HalfACharacter:
        raise AdapterRejected(f"{path.name} holds half of a surrogate pair, no character") from None
    except (ValueError, RecursionError):
        raise AdapterRejected(f"{path.name} is not JSON") from None


def refuse_another_kind(content: bytes, name: str) -> None:
    """Raises AdapterRejected for a text file that is empty, a pointer, a page or in UTF-16."""
    kind = another_kind(content[:512])
    if not content.strip():
        kind = "empty"
    elif content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        kind = "in UTF-16, as PowerShell writes it: save it as UTF-8"
    if kind is not None:
        raise AdapterRejected(f"{name} is {kind}")


class HalfACharacter(ValueError):
    """JSON can spell half of a surrogate pair, which no answer could hold."""


def whole_text(value: Any) -> Any:
    """The JSON value as it is. Raises HalfACharacter."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HalfACharacter("holds half of a surrogate pair, no character") from None
    return value
