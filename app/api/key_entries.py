"""How keys are written: one an entry, with what it may do.

A secret is kept as its digest only. Knows no routes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from starlette.datastructures import Headers

from app.inference.caller import Key

HEADERS = ("api-key", "x-api-key")  # Azure's clients' and others', beside Authorization


def secret_of(headers: Headers) -> str | None:
    """The key that a request brings: `Authorization: Bearer KEY`, bare, or in another header."""
    scheme, space, secret = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    if scheme and not space and scheme.lower() != "bearer":
        return scheme
    return next((value for name in HEADERS if (value := headers.get(name))), None)


class KeysRefused(Exception):
    """A key that cannot be read, with its place and never the key itself."""


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
            digest_of(secret),
            kind == "admin",
            None if adapters is None else tuple(adapters.split("|")),
            _rate(given.get("tokens_per_s"), where),
        )


def keys_of(kind: str, entries: str | None, file: Path | None) -> list[Key]:
    """Keys from a comma-separated list and from a file's lines. Raises KeysRefused."""
    place = f"{kind.upper()}_KEYS"
    keys = list(read_keys((entries or "").split(","), kind, place, options=False))
    if file is None:
        return keys
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysRefused(f"{place}_FILE={file} cannot be read: {error}") from None
    from_file = list(read_keys(lines, kind, str(file), options=True))
    if not from_file:
        raise KeysRefused(f"{file} holds no key: put one in, or unset {place}_FILE")
    return keys + from_file


def refuse_twice(keys: list[Key]) -> list[Key]:
    """The keys. Raises KeysRefused for one that is there twice: which of the two would it be?"""
    seen: dict[bytes, str] = {}
    for key in keys:
        if key.digest in seen:
            raise KeysRefused(f"{seen[key.digest]} and {key.name} are the same key")
        seen[key.digest] = key.name
    return keys


def _rate(word: str | None, where: str) -> float | None:
    try:
        rate = None if word is None else float(word)
    except ValueError:
        rate = -1
    if rate is not None and not 0 < rate < float("inf"):
        raise KeysRefused(f"{where}: tokens_per_s is a number above 0")
    return rate


def digest_of(secret: str) -> bytes:
    """sha256: all that is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
