"""What a start has worked out, kept for the next one: beside the sources, or in the user's cache.

As with numba's code, a place that cannot be written costs time at the next start and nothing else.
Knows files; knows not what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

DIGEST_BYTES = 32  # before what is kept: a flipped bit would be a wrong number in every answer
BESIDE = Path(__file__).parent / "__pycache__"


def places() -> list[Path]:
    """Where to look, the first first."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [BESIDE, Path(cache).expanduser() / "bert-lora-server" / "kept"]


def read(name: str) -> bytes | None:
    """None: it has not been kept, or is not what was written."""
    for place in places():
        with contextlib.suppress(OSError):
            kept = (place / name).read_bytes()
            digest, body = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() == digest:
                return body
    return None


def write(name: str, body: bytes) -> bool:
    """Whole or not at all, in the first place that takes it; False: in none."""
    for place in places():
        part = place / f"{name}.{secrets.token_hex(4)}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            part.write_bytes(hashlib.sha256(body).digest() + body)
            part.replace(place / name)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            continue
        return True
    return False


def short_hash(*parts: bytes) -> str:
    """Of all parts: for a name."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:24]
