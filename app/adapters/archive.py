"""An upload's body on disk -> the adapter files in it: multipart, tar, zip or bare safetensors.

Believes nothing that an archive says of its names and sizes; knows nothing of LoRA.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, MultipartState, parse_options_header

from app.adapters.upload import (
    ADAPTER_FILES,
    CHUNK_BYTES,
    POOLING,
    WEIGHTS,
    AdapterRejected,
    UnsupportedMedia,
    UploadTooLarge,
    refuse_by_first_bytes,
)

MAX_ARCHIVE_ENTRIES = 1_000
MOST_RATIO, FREE_BYTES = 20, 32 << 20  # trained floats shrink by a tenth when packed
ALIASES = {"adapter.safetensors": WEIGHTS}  # AdapterHub's name for it
MODULE_FOLDER = re.compile(r"\d+_\w+")
GZIP = b"\x1f\x8b"
# What the standard library raises for bytes that are no archive.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    LookupError,
    OverflowError,
)


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
        left = _unpack_zip(body, folder, _room(body, max_bytes))
    elif start[:2] == GZIP or start[257:262] == b"ustar":
        left = _unpack_tar(body, folder, _room(body, max_bytes))
    else:
        refuse_by_first_bytes(start)
        body.rename(folder / WEIGHTS)
        return []
    return left


def copy_adapter(source: Path, folder: Path) -> None:
    """A new `folder` with the adapter files of an existing one. Raises OSError."""
    folder.mkdir()
    for name in ADAPTER_FILES:
        found = next((source / n for n in _spellings(name) if (source / n).is_file()), None)
        if found is not None:
            shutil.copyfile(found, _place(folder, name))


def _spellings(name: str) -> list[str]:
    return [name, *(alias for alias, of in ALIASES.items() if of == name)]


def _keep(name: str) -> str | None:
    """The adapter file that an archive's or form's name stands for, or None.

    What lies in a sentence-transformers module's own folder ("2_Normalize/config.json") is not the
    adapter's, but for the pooling's config.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if "/".join(path.parts[-2:]) == POOLING:
        return POOLING
    if any(MODULE_FOLDER.fullmatch(part) for part in path.parts[:-1]):
        return None
    found = ALIASES.get(path.name, path.name)
    return found if found in ADAPTER_FILES else None


def _place(folder: Path, name: str) -> Path:
    """Where an adapter file goes."""
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    return target


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
            with _place(folder, target).open("wb") as out:
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
        if getattr(parser.parser, "state", None) != MultipartState.END:
            raise AdapterRejected(
                "the multipart body is cut short: its closing boundary is missing"
            )
    except FormParserError as error:
        raise AdapterRejected(f"the multipart body cannot be read: {error}") from None
    _refuse_if_only_pickle(folder, left)
    return left


def _damaged(kind: str, error: Exception) -> Exception:
    """A refusal, unless it is the disk that took no more."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return AdapterRejected(f"the {kind} cannot be read: {error or type(error).__name__}")


def _unpack_zip(body: Path, folder: Path, room: Room) -> list[str]:
    left: list[str] = []
    seen = Entries()
    try:
        with zipfile.ZipFile(body) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            kept = [seen.check(e.filename) for e in entries]
            for entry, name in zip(entries, kept, strict=True):
                if name is None:
                    left.append(entry.filename)
                    continue
                with archive.open(entry) as source:
                    _copy_capped(source, _place(folder, name), room)
    except DAMAGE as error:
        raise _damaged("zip", error) from None
    _refuse_if_only_pickle(folder, left)
    return left


def _unpack_tar(body: Path, folder: Path, room: Room) -> list[str]:
    left: list[str] = []
    seen = Entries()
    try:
        with _plain(body) as plain, tarfile.open(fileobj=plain, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg():
                    raise AdapterRejected(
                        f"{member.name!r} in the tar is a link or device, not a file"
                    )
                name = seen.check(member.name)
                source = archive.extractfile(member)
                if name is None or source is None:
                    room.take(member.size)  # skipped bytes are read too
                    left.append(member.name)
                    continue
                _copy_capped(source, _place(folder, name), room)
            _check_end(plain, archive.offset, room)
    except DAMAGE as error:
        raise _damaged("tar", error) from None
    _refuse_if_only_pickle(folder, left)
    return left


def _plain(body: Path) -> IO[bytes]:
    """The tar's own bytes, gunzipped where it is gzipped."""
    with body.open("rb") as file:
        gzipped = file.read(2) == GZIP
    return cast(IO[bytes], gzip.open(body, "rb")) if gzipped else body.open("rb")


def _check_end(plain: IO[bytes], end: int, room: Room) -> None:
    """A tar ends in a block of zeros, which tarfile lets go missing; and gzip's checksum comes last.

    Raises AdapterRejected, UploadTooLarge, and what gzip raises for a wrong checksum.
    """
    plain.seek(end)
    if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise AdapterRejected("the tar is damaged or cut short: its end mark is missing")
    while chunk := plain.read(CHUNK_BYTES):
        room.take(len(chunk))


@dataclass
class Entries:
    """What an archive's names have been so far."""

    count: int = 0
    kept: set[str] = field(default_factory=set)

    def check(self, name: str) -> str | None:
        """The adapter file that it is, or None. Raises AdapterRejected for a name that points
        outside, an adapter file that was there before, and endless lists.
        """
        self.count += 1
        if self.count > MAX_ARCHIVE_ENTRIES:
            raise AdapterRejected(f"the archive holds more than {MAX_ARCHIVE_ENTRIES} files")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise AdapterRejected(f"{name!r:.200} in the archive points outside of it")
        kept = _keep(name)
        if kept in self.kept:
            raise AdapterRejected(
                f"the archive holds {kept} more than once: send one adapter's folder"
            )
        if kept is not None:
            self.kept.add(kept)
        return kept


@dataclass
class Room:
    """Bytes that an archive may still unpack to: what it says of its sizes is not believed."""

    left: int
    max_bytes: int
    bomb: bool

    def take(self, size: int) -> None:
        """Raises UploadTooLarge, or AdapterRejected for what unpacks to many times its own size."""
        self.left -= size
        if self.left >= 0:
            return
        if self.bomb:
            raise AdapterRejected(f"the archive unpacks to over {MOST_RATIO} times its size")
        raise UploadTooLarge(self.max_bytes)


def _room(body: Path, max_bytes: int) -> Room:
    """The cap, or less where so much could only come of a bomb."""
    most = FREE_BYTES + MOST_RATIO * body.stat().st_size
    return Room(min(most, max_bytes), max_bytes, bomb=most < max_bytes)


def _copy_capped(source: IO[bytes], target: Path, room: Room) -> None:
    with target.open("xb") as out:
        while chunk := source.read(CHUNK_BYTES):
            room.take(len(chunk))
            out.write(chunk)
