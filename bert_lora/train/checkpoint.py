"""Where a training stands, on the disk: one that is killed goes on from there."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EVERY_S = 60.0


@dataclass
class Progress:
    """epoch, batch: the next to train. best: the best state so far and its score. history: what
    each epoch gave. optimizer: torch's own state.
    """

    epoch: int = 0
    batch: int = 0
    state: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    best: dict[str, Tensor] | None = None
    best_score: float = float("-inf")
    best_epoch: int = -1
    loss: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Checkpoint:
    """One file. fingerprint: of the data and of all that is asked; another one begins anew."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._written = time.monotonic()

    def load(self) -> Progress | None:
        """What was kept; None for nothing, and for another training's."""
        if not self._path.exists():
            return None
        try:
            kept = torch.load(self._path, weights_only=True)
        except Exception:  # whatever torch makes of a damaged file: then it begins anew
            return None
        if kept.pop("fingerprint", None) != self._fingerprint:
            return None
        return Progress(**kept)

    def due(self) -> bool:
        """Is it time to keep again?"""
        return time.monotonic() - self._written >= EVERY_S

    def keep(self, progress: Progress) -> None:
        """Written beside, then put in place: a kill leaves the old one or the new one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            torch.save({"fingerprint": self._fingerprint, **vars(progress)}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._written = time.monotonic()

    def remove(self) -> None:
        """When the training is over."""
        self._path.unlink(missing_ok=True)
