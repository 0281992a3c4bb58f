"""What is known of one version: how it was read, and what it did to the base when it was measured.

Pure values and their JSON, which is the part of docs/api.md's adapter object that belongs to the
version. Knows no tensors and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.adapters.sentence import Pooling
from app.adapters.values import Scaling, Scores, Task


@dataclass(frozen=True)
class TensorCounts:
    """Of the weights' file. ignored: those that repeat what the base says, by name."""

    in_file: int
    used: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """How far the probe text's hidden states move: relative L2 distances, in all and by layer."""

    relative: float
    layers: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """One version's. version: its sha256. bytes: of its weights' file; resident_bytes: in memory.

    scores: what becomes of the head's logits; None without a head. scale: None where there are
    several. targets: how many layers of each module name. max_length in tokens. certified: how many
    answers of its certificate held. warnings: what had to be assumed, in words.
    """

    version: str
    task: Task
    labels: tuple[str, ...]
    scores: Scores | None
    has_head: bool
    layout: str
    kind: str
    rank: int
    scale: float | None
    scaling: tuple[Scaling, ...]
    targets: Mapping[str, int]
    bytes: int
    resident_bytes: int
    tensors: TensorCounts
    delta: Effect
    pooling: Pooling | None
    normalize: bool | None
    max_length: int | None
    prompts: Mapping[str, str]
    dimensions: tuple[int, ...]
    embedding_space: str
    certified: int = 0
    warnings: tuple[str, ...] = field(default=())

    @property
    def ranks(self) -> bool:
        """Whether it scores a pair: its head has exactly one label."""
        return self.has_head and self.task == "classify" and len(self.labels) == 1

    def to_json(self) -> dict[str, Any]:
        """The members that HTTP promises, in their order; nothing is copied that need not be."""
        scaling = [{k: v for k, v in vars(s).items() if v is not None} for s in self.scaling]
        nested = {"scaling": scaling, "tensors": vars(self.tensors), "delta": vars(self.delta)}
        return {**vars(self), **nested}


def report_from_json(raw: object) -> Report | None:
    """What to_json has given; None for anything else."""
    try:
        return _REPORT.validate_python(raw)
    except ValidationError:
        return None


_REPORT = TypeAdapter(Report)
