"""A version that the store holds: ready to run, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.adapters.report import Report
from app.model.version import Version


@dataclass(frozen=True, eq=False)
class StoredVersion(Version):
    """report: what the adapter routes answer about it."""

    report: Report = field(kw_only=True)
