"""A version that the store holds: ready to run, with what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from app.adapters.base import Base
from app.adapters.changes import module_changes
from app.adapters.report import Report
from app.adapters.values import move
from app.model.version import Version

Changes = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class StoredVersion(Version):
    """report: what the adapter routes answer about it."""

    report: Report = field(kw_only=True)
    _changes: dict[str, float | None] = field(default_factory=dict, kw_only=True)

    def changes(self, base: Base) -> Changes:
        """How much each module's weight changes (adapters/changes.py). Blocks the first time."""
        if not self._changes:
            adapter = move(self.adapter, torch.device("cpu"), torch.float32)
            self._changes.update(module_changes(adapter, base))
        return self._changes
