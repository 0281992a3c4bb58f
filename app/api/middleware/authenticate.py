"""Who may ask for what: whether a request's key is enough for the route that it matched
(access.py), and which adapters the key may use.

Keys are kept as digests and compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import matched_of
from app.api.errors import respond
from app.api.key_entries import digest_of, secret_of
from app.api.refusal import Refusal
from app.api.serving import Serving
from app.inference.caller import Key
from app.inference.choose import names_in

MOST_NAMED = 5  # keys


def is_loopback(host: str) -> bool:
    """Whether a server that listens there can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def who_may_change(keys: Sequence[Key], host: str) -> str:
    """Who may change adapters on a server that listens there, in words; as Authenticate decides."""
    if admins := [key.name for key in keys if key.admin]:
        more = f" and {len(admins) - MOST_NAMED} more" if len(admins) > MOST_NAMED else ""
        return f"whoever has an admin key ({', '.join(admins[:MOST_NAMED])}{more})"
    if keys:
        return "nobody: there are keys and none for admins; set BERT_LORA_ADMIN_KEYS"
    if is_loopback(host):
        return "everybody on this machine, without a key; set BERT_LORA_ADMIN_KEYS to change that"
    return "nobody: other machines reach this server; set BERT_LORA_ADMIN_KEYS"


def refuse_unless_admin(request: Request) -> None:
    """Raises Refusal where the request could not use an admin route: for what only admins may
    ask.
    """
    refusal: Refusal | None = request.scope["state"]["admin_refusal"]()
    if refusal is not None:
        raise refusal


@dataclass(frozen=True)
class Authenticate:
    """Nothing of a body is read before its key is known.

    loopback: only this machine can connect, so without keys admin routes are open to it.
    """

    app: ASGIApp
    keys: Sequence[Key]
    loopback: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            key = scope["state"]["key"] = self._key(Headers(scope=scope))
            scope["state"]["admin_refusal"] = partial(self._admin_refusal, scope, key)
            refusal = self._refusal(scope, key)
            if refusal is not None:
                await respond(refusal, scope, receive, send)
                return
            scope["state"]["admitted"] = True
        await self.app(scope, receive, send)

    def _key(self, headers: Headers) -> Key | None:
        secret = secret_of(headers)
        if secret is None:
            return None
        digest = digest_of(secret)
        # all of them, so that the time tells nothing
        equal = [key for key in self.keys if hmac.compare_digest(key.digest, digest)]
        return equal[0] if equal else None

    def _refusal(self, scope: Scope, key: Key | None) -> Refusal | None:
        matched = matched_of(scope)
        match matched.access.needs:
            case "nothing":
                return None
            case "any key":
                refusal = self._key_refusal(key)
            case "unrestricted key":
                refusal = self._key_refusal(key) or _restricted(key, matched.path)
            case "admin key":
                refusal = self._admin_refusal(scope, key)
            case _:
                assert_never(matched.access.needs)
        return refusal or _forbidden_adapter(_adapters_of(scope), key)

    def _key_refusal(self, key: Key | None) -> Refusal | None:
        if key is None and any(not k.admin for k in self.keys):
            return _unauthenticated("this server needs a key")
        return None

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
                "without keys adapters are changed by a local name (localhost, 127.0.0.1) and from "
                "no other site's page: set BERT_LORA_ADMIN_KEYS",
            )
        return Refusal(
            403,
            "forbidden",
            "this server can be reached from other machines and has no admin keys, so nobody may "
            "change adapters: set BERT_LORA_ADMIN_KEYS, or put folders into ADAPTERS_DIR",
        )


def _adapters_of(scope: Scope) -> list[str]:
    """The adapters that the path names, whichever way it spells them."""
    params = matched_of(scope).params
    if "adapter" not in params:
        return [params["name"]] if params.get("name") else []
    serving: Serving = scope["app"].state.serving
    return names_in(serving.runtime, params["adapter"])


def _restricted(key: Key | None, path: str) -> Refusal | None:
    if key is None or key.adapters is None:
        return None
    return Refusal(403, "forbidden", f"{path} shows every adapter, which this key may not")


def _forbidden_adapter(names: list[str], key: Key | None) -> Refusal | None:
    name = next((name for name in names if key is not None and not key.may_use(name)), None)
    if name is None:
        return None
    return Refusal(403, "forbidden", f"this key may not use the adapter {name!r}")


def _unauthenticated(why: str) -> Refusal:
    return Refusal(
        401,
        "unauthenticated",
        f"{why}: send Authorization: Bearer KEY with one that it knows",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _is_public_name(host: str) -> bool:
    """Could DNS rebinding point this Host at us? Not an address, nor a name without a dot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host.rstrip(".") and not host.endswith(".localhost")
    return False


def _from_a_page_elsewhere(headers: Headers) -> bool:
    """Whether a browser sent it for another site's page (CSRF), or for a name that leads here (DNS
    rebinding)."""
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
