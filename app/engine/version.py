"""One immutable adapter version, ready to run: what a name leads to and what a sequence runs through."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.report import Report
from app.adapters.values import Adapter
from app.model.delta import Layers


@dataclass(frozen=True, eq=False)
class Version:
    """report: what the adapter routes answer about it.

    layers: merged ones in a merged version, whose copies take merged_bytes.
    """

    digest: str
    adapter: Adapter
    report: Report
    layers: Layers
    merged_bytes: int = 0
