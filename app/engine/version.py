"""One immutable adapter version, ready to run: what a name leads to and what a sequence runs through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.adapters.values import Adapter
from app.model.delta import Layers


@dataclass(frozen=True, eq=False)
class Version:
    """report: what the adapter routes answer about it.

    layers: merged ones in a merged version, whose copies take merged_bytes.
    """

    digest: str
    adapter: Adapter
    report: Mapping[str, Any]
    layers: Layers
    merged_bytes: int = 0
