"""One immutable version of an adapter, ready to run; the base is one too (Encoder.version).

A name leads to a version, and every sequence runs through one. Knows no names.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.values import Adapter
from app.model.delta import Layers


@dataclass(frozen=True, eq=False)
class Version:
    """digest: of the adapter's files; the base's is over its weights.

    layers: what the forward runs; a merged version has merged ones, whose copies take merged_bytes.
    """

    digest: str
    adapter: Adapter
    layers: Layers
    merged_bytes: int = 0


def embedding_space(base: str, version: str | None) -> str:
    """Vectors of two different spaces must not be compared. Digests of the base and the version."""
    return base[:16] if version is None else f"{base[:16]}+{version[:16]}"
