"""A multipart form's body -> the adapter files in it. Knows nothing of LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, MultipartState, parse_options_header

from app.adapters.files import WEIGHTS, adapter_file, place, refuse_if_only_pickle
from app.adapters.upload import CHUNK_BYTES, AdapterRejected


def unpack_form(body: Path, content_type: str, folder: Path) -> list[str]:
    """Put the adapter files of a multipart body into `folder`; returns the names left aside.

    Raises AdapterRejected.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise AdapterRejected("the multipart body has no boundary in its Content-Type")
    left: list[str] = []
    seen: set[str] = set()

    def on_file(file: Any) -> None:
        names = [n.decode("utf-8", "replace") for n in (file.field_name, file.file_name) if n]
        name = next((kept for kept in map(adapter_file, names) if kept), None)
        bare = next((n for n in names if n.endswith(".safetensors")), None)
        target = name or (WEIGHTS if bare else None)
        if target is None:
            left.append(names[-1] if names else "?")
        elif target in seen:
            raise AdapterRejected(f"the upload holds {target} twice")
        else:
            seen.add(target)
            file.file_object.seek(0)
            with place(folder, target).open("wb") as out:
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
    refuse_if_only_pickle(folder, left)
    return left
