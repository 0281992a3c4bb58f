"""Who may ask for what: keys, which routes need one, and which adapters a key may use.

Keys are kept as digests and compared in constant time. What is not named open here needs a key, so a
new route is closed until somebody opens it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import Refusal, respond

OPEN = ("/", "/livez", "/readyz", "/health", "/docs", "/redoc", "/openapi.json")
OPEN_BELOW = "/static-offline-docs/"
WHOLE_SERVER = ("/metrics",)  # shows every adapter: not for a key that may use some only
READING = ("GET", "HEAD")
WEIGHTS = "files"


class KeysRefused(Exception):
    """A key that cannot be read, with its place and never the key itself."""


@dataclass(frozen=True)
class Key:
    """name: for logs and histories. digest: sha256 of the secret, which is kept nowhere.

    adapters: patterns as in a shell; None: all. tokens_per_s: what it may ask for; None: any amount.
    """

    name: str
    digest: bytes
    admin: bool
    adapters: tuple[str, ...] | None = None
    tokens_per_s: float | None = None

    def may_use(self, adapter: str) -> bool:
        """The base is everybody's."""
        if self.adapters is None or adapter == "base":
            return True
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


def read_keys(entries: Sequence[str], kind: str, place: str, *, options: bool) -> Iterator[Key]:
    """Keys from entries "SECRET [name=…] [adapters=a|b*] [tokens_per_s=…]".

    kind: "api" or "admin". Empty entries are skipped, and those that begin with #. options: whether
    there may be more than the secret. Raises KeysRefused.
    """
    count = 0
    for number, entry in enumerate(entries, 1):
        secret, *words = entry.split() or [""]
        if not secret or secret.startswith("#"):
            continue
        count += 1
        where = f"{place}, entry {number}"
        if not (secret.isascii() and secret.isprintable()):
            raise KeysRefused(f"{where}: a key is printable ASCII without spaces")
        if words and not options:
            raise KeysRefused(f"{where}: words after a key belong into a file of keys")
        given = dict(word.partition("=")[::2] for word in words)
        if unknown := given.keys() - {"name", "adapters", "tokens_per_s"}:
            raise KeysRefused(
                f"{where}: {len(unknown)} unknown words after the key; there may be name=, "
                "adapters= and tokens_per_s="
            )
        adapters = given.get("adapters")
        if adapters is not None and not all(adapters.split("|")):
            raise KeysRefused(f"{where}: adapters= is a|b*, without empty names")
        yield Key(
            given.get("name") or f"{kind}-key-{count}",
            _digest(secret),
            kind == "admin",
            None if adapters is None else tuple(adapters.split("|")),
            _rate(given.get("tokens_per_s"), where),
        )


def refuse_twice(keys: Sequence[Key]) -> None:
    """Raises KeysRefused for a key that is there twice: which of the two would it be?"""
    seen: dict[bytes, str] = {}
    for key in keys:
        if key.digest in seen:
            raise KeysRefused(f"{seen[key.digest]} and {key.name} are the same key")
        seen[key.digest] = key.name


def _rate(said: str | None, where: str) -> float | None:
    try:
        rate = None if said is None else float(said)
    except ValueError:
        rate = -1
    if rate is not None and not 0 < rate < float("inf"):
        raise KeysRefused(f"{where}: tokens_per_s is a number above 0")
    return rate


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


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
        digest, found = _digest(secret.strip()), None
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
                "without keys adapters are changed by a loopback name (localhost, 127.0.0.1) and from "
                "no other site's page: set BERT_LORA_ADMIN_KEYS",
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


def _from_a_page_elsewhere(headers: Headers) -> bool:
    """A browser's request for another site's page, also where that site's name leads to this machine."""
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return True
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != host
