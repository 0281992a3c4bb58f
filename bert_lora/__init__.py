"""What users of the server import: its client, and the same calls without a server.

    import bert_lora

    with bert_lora.Client("http://127.0.0.1:8080") as client:
        vectors = client.embed(["I love this film.", "How do I top up?"], adapter="sentiment")

A name is imported when it is first used; torch, with load() alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_lora.async_client import AsyncClient
    from bert_lora.client import Client
    from bert_lora.errors import (
        BadRequest,
        BertLoraError,
        Conflict,
        MixedVersions,
        NotFound,
        NotPermitted,
        Refused,
        Unavailable,
        Unreachable,
        Unreadable,
        WrongText,
    )
    from bert_lora.local import Local, load

__all__ = [
    "AsyncClient",
    "BadRequest",
    "BertLoraError",
    "Client",
    "Conflict",
    "Local",
    "MixedVersions",
    "NotFound",
    "NotPermitted",
    "Refused",
    "Unavailable",
    "Unreachable",
    "Unreadable",
    "WrongText",
    "load",
]
WHERE = {"AsyncClient": "async_client", "Client": "client", "Local": "local", "load": "local"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{WHERE.get(name, 'errors')}"), name)
