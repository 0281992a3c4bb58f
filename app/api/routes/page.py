"""The page at /, and its files: what a browser shows of this server, by the public routes alone.

root.py answers `GET /`. Knows files; what they ask for is theirs.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

import app
from app.api.access import access
from app.api.adapter_object import etag, tags_match
from app.api.refusal import Refusal

router = APIRouter(tags=["running"])
FOLDER = Path(app.__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for each time whether it is still the same
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


@router.get("/page/{file}", include_in_schema=False)
@access("nothing")
async def page(request: Request, file: str) -> Response:
    """One of the page's scripts, or its style."""
    return page_file(file, request, {})


def page_file(name: str, request: Request, headers: dict[str, str]) -> Response:
    """The file, or 304 where the browser has it. Raises Refusal (404)."""
    if name not in _files():
        raise Refusal(404, "not_found", "the page has no such file; / is the page")
    body, digest = _files()[name]
    tagged = HEADERS | headers | {"ETag": etag(digest)}
    if tags_match(request.headers.get("if-none-match", "").replace("W/", ""), digest):
        return Response(status_code=304, headers=tagged)
    return Response(body, 200, tagged, TYPES[Path(name).suffix])


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Each file's bytes and their sha256."""
    bodies = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
    return {name: (body, hashlib.sha256(body).hexdigest()) for name, body in bodies.items()}
