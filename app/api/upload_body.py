"""An upload's body by its Content-Type: a form, a text that says where the files are, or the bytes.

Alone knows what media types an adapter comes in; archives are told by their first bytes, below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from app.adapters.receiving.received import Received
from app.adapters.receiving.upload import TAKEN
from app.adapters.refusals import AdapterRejected
from app.api.upload_form import unpack_form

MAX_SOURCE_BYTES = 64 << 10
NO_ADAPTERS = ("text/", "image/", "audio/", "video/")


class UnsupportedMedia(Exception):
    """A content type that no adapter comes in."""


class SourceMalformed(Exception):
    """What came as JSON is none."""


Upload = Path | Received | str


def opened(body: Path, content_type: str) -> Upload:
    """What the body brings: itself, a form's files beside it, or the source that its JSON names.

    Blocks. Raises UnsupportedMedia, SourceMalformed, AdapterRejected.
    """
    media_type = content_type.split(";", maxsplit=1)[0].strip().lower()
    if media_type.startswith(NO_ADAPTERS):
        raise UnsupportedMedia(f"an adapter does not come as {media_type!r:.80}: {TAKEN}")
    opener = OPENERS.get(media_type)
    return body if opener is None else opener(body, content_type)


def _form(body: Path, content_type: str) -> Received:
    """The form's files. Raises AdapterRejected."""
    received = Received(body.with_name("received"))
    unpack_form(body, content_type, received)
    return received


def _source(body: Path, _: str) -> str:
    """{"source": …}. Raises SourceMalformed, AdapterRejected."""
    if body.stat().st_size > MAX_SOURCE_BYTES:
        raise SourceMalformed(f"a body that says its source is over {MAX_SOURCE_BYTES:,} bytes")
    try:
        value = json.loads(body.read_bytes())
    except (ValueError, RecursionError):
        raise SourceMalformed("the body is not JSON, as its content type says") from None
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("source"), str):
        return str(value["source"])
    raise AdapterRejected(
        'JSON is taken as {"source": "/folder"} or {"source": "hf:org/repo@revision"} only; '
        "an adapter itself is sent as safetensors, multipart, tar or zip"
    )


OPENERS: dict[str, Callable[[Path, str], Upload]] = {
    "multipart/form-data": _form,
    "application/json": _source,
}
