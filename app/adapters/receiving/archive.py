"""An upload's bytes on disk -> the adapter files in them: a tar, a zip or a bare safetensors file.

Believes nothing that an archive says of its names and sizes: against path traversal every name is
checked, against zip bombs every byte is counted. Knows nothing of HTTP or LoRA.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from app.adapters.files import WEIGHTS
from app.adapters.receiving.received import Received
from app.adapters.receiving.upload import CHUNK_BYTES, TAKEN, refuse_by_first_bytes
from app.adapters.refusals import AdapterRejected, UploadTooLarge

MOST_RATIO, FREE_BYTES = 20, 32 << 20  # trained floats shrink by a tenth when packed
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


def unpack(body: Path, folder: Path, max_bytes: int, path: str | None = None) -> list[str]:
    """Put the adapter files of `body` into `folder`; returns the names that were left aside.

    What the body is, its first bytes tell. path: which of the upload's folders; None: the one that has
    weights. Raises AdapterRejected, UploadTooLarge.
    """
    with body.open("rb") as file:
        start = file.read(512)
    received = Received(folder.with_name("received"))
    if start[:4] == b"PK\x03\x04":
        _unpack_zip(body, received, _room(body, max_bytes))
    elif start[:2] == GZIP or start[257:262] == b"ustar":
        _unpack_tar(body, received, _room(body, max_bytes))
    else:
        refuse_by_first_bytes(start)
        if path is not None:
            raise AdapterRejected(f"path={path!r:.200} is given, and a bare file has no folders")
        body.rename(folder / WEIGHTS)
        return []
    return received.settle(folder, path)


def _damaged(kind: str, error: Exception) -> Exception:
    """A refusal, unless it is the disk that took no more."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return AdapterRejected(f"the {kind} cannot be read: {error or type(error).__name__}")


def _unpack_zip(body: Path, received: Received, room: Room) -> None:
    try:
        with zipfile.ZipFile(body) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                target = received.place(_inside(entry.filename), entry.filename)
                if target is not None:
                    with archive.open(entry) as source:
                        _copy_capped(source, target, room)
    except DAMAGE as error:
        raise _damaged("zip", error) from None


def _unpack_tar(body: Path, received: Received, room: Room) -> None:
    try:
        with _plain(body) as plain:
            if (start := plain.read(512)) and start[257:262] != b"ustar":
                raise AdapterRejected(f"the gzip holds no tar: {TAKEN}")
        with _plain(body) as plain, tarfile.open(fileobj=plain, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg():
                    raise AdapterRejected(
                        f"{member.name!r} in the tar is a link or device, not a file"
                    )
                target = received.place(_inside(member.name), member.name)
                source = archive.extractfile(member)
                if target is None or source is None:
                    room.take(member.size)  # skipped bytes are read too
                    continue
                _copy_capped(source, target, room)
            _check_end(plain, archive.offset, room)
    except DAMAGE as error:
        raise _damaged("tar", error) from None


def _inside(name: str) -> str:
    """An entry's path with / between. Raises AdapterRejected for one that points outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise AdapterRejected(f"{name!r:.200} in the archive points outside of it")
    return str(path)


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
class Room:
    """How many bytes an archive may still unpack to. bomb: where more could only be a zip bomb's."""

    remaining: int
    max_bytes: int
    bomb: bool

    def take(self, size: int) -> None:
        """Raises UploadTooLarge, or AdapterRejected for what unpacks to many times its own size."""
        self.remaining -= size
        if self.remaining >= 0:
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
