"""Who may ask for what: which routes need a key, and which adapters it may use.

Keys are kept as digests and compared in constant time. What is not named open here needs a key, so a
new route is closed until somebody opens it.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import Refusal, respond
from app.api.key_entries import Key, digest_of

OPEN = ("/", "/livez", "/readyz", "/health", "/docs", "/redoc", "/openapi.json")
OPEN_BELOW = "/static-offline-docs/"
WHOLE_SERVER = ("/metrics",)  # shows every adapter: not for a key that may use some only
READING = ("GET", "HEAD")
WEIGHTS = "files"


def is_loopback(host: str) -> bool:
    """Whether a server that listens there can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def key_of(request: Request) -> Key | None:
    """The key that the request came with; None: without one, which was enough."""
    found: Key | None = request.scope.get("state", {}).get("key")
    return found


def caller(request: Request) -> str | None:
    """Who asks, for a history."""
    key = key_of(request)
    return key.name if key else None


def may_use(request: Request, adapter: str) -> bool:
    key = key_of(request)
    return key is None or key.may_use(adapter)


def refuse_forbidden(request: Request, adapter: str) -> None:
    """Raises Refusal for an adapter that the key may not use, whether it exists or not."""
    if not may_use(request, adapter):
        raise Refusal(403, "forbidden", f"this key may not use the adapter {adapter!r}")


@dataclass(frozen=True)
class Door:
    """Around every request, inside of the guard: nothing of a body is read before its key is known.

    loopback: nobody outside of this machine can connect, so that without keys nobody is kept out.
    """

    app: ASGIApp
    keys: Sequence[Key]
    loopback: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = scope["state"]["key"] = self._key(Headers(scope=scope))
            refusal = self._refusal(scope, key)
            if refusal is not None:
                await respond(Request(scope), refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _key(self, headers: Headers) -> Key | None:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest, found = digest_of(secret.strip()), None
        for key in self.keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refusal(self, scope: Scope, key: Key | None) -> Refusal | None:
        path, method = scope["path"], scope["method"]
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if _is_admin(method, path):
            return self._admin_refusal(scope, key) or _forbidden_adapter(path, key)
        if key is None and any(not k.admin for k in self.keys):
            return _unauthenticated("this server needs a key")
        if key is not None and key.adapters is not None and path in WHOLE_SERVER:
            return Refusal(403, "forbidden", f"{path} shows every adapter, which this key may not")
        return _forbidden_adapter(path, key)

    def _admin_refusal(self, scope: Scope, key: Key | None) -> Refusal | None:
        if key is not None and key.admin:
            return None
        if key is not None:
            return Refusal(
                403, "forbidden", "this key is for inference: changing adapters needs an admin key"
            )
        if self.keys:
            return _unauthenticated("changing adapters needs an admin key")
        if self.loopback and not _from_a_page_elsewhere(Headers(scope=scope)):
            return None
        if self.loopback:
            return Refusal(
                403,
                "forbidden",
                "without keys adapters are changed by a local name (localhost, 127.0.0.1) and from no "
                "other site's page: set BERT_LORA_ADMIN_KEYS",
            )
        return Refusal(
            403,
            "forbidden",
            "this server can be reached from other machines and has no admin keys, so nobody may "
            "change adapters: set BERT_LORA_ADMIN_KEYS, or put folders into ADAPTERS_DIR",
        )


def _is_admin(method: str, path: str) -> bool:
    """What changes adapters or gives their weights away."""
    if not path.startswith("/adapters"):
        return False
    parts = path.rstrip("/").split("/")
    return method not in READING or (len(parts) > 3 and parts[-1] == WEIGHTS)


def _forbidden_adapter(path: str, key: Key | None) -> Refusal | None:
    parts = path.split("/")
    if key is None or parts[1] != "adapters" or len(parts) < 3 or not parts[2]:
        return None
    if key.may_use(parts[2]):
        return None
    return Refusal(403, "forbidden", f"this key may not use the adapter {parts[2]!r}")


def _unauthenticated(why: str) -> Refusal:
    return Refusal(
        401,
        "unauthenticated",
        f"{why}: send Authorization: Bearer KEY with one that it knows",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _is_public_name(host: str) -> bool:
    """Whether anybody could have led the name here; an address, or a name without a dot, nobody can."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host.rstrip(".") and not host.endswith(".localhost")
    return False


def _from_a_page_elsewhere(headers: Headers) -> bool:
    """A browser's request for another site's page, also where that site's name leads to this machine."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        page = None if origin is None else urlsplit(origin).netloc
    except ValueError:  # no address at all
        return True
    if _is_public_name(name):
        return True
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    return page is not None and page != host
