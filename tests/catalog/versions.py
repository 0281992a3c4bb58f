"""Versions and names made by hand, for tests that need no base."""

from __future__ import annotations

import torch

from app.adapters.report import Effect, Report, TensorCounts
from app.adapters.values import Adapter, LoRALayer, Task
from app.catalog.pointer import Entry, Pointer, Trial
from app.catalog.registry import Name
from app.catalog.stored_version import StoredVersion

BYTES = 2 * 4 * 16 * 4  # of each version: A [4, 16] and B [16, 4] in float32


def digest_for(i: int) -> str:
    return f"{i:x}" * 64


def report_for(digest: str, task: Task = "embed", *, has_head: bool = False) -> Report:
    return Report(
        version=digest,
        task=task,
        labels=(),
        scores=None,
        has_head=has_head,
        layout="peft",
        kind="LORA",
        rank=4,
        scale=1.0,
        scaling=(),
        targets={"query": 1},
        bytes=BYTES,
        resident_bytes=BYTES,
        tensors=TensorCounts(2, 2, ()),
        delta=Effect(0.1, (0.1,)),
        pooling="mean",
        normalize=True,
        max_length=128,
        prompts={},
        dimensions=(),
        embedding_space="base",
    )


def version_for(i: int) -> StoredVersion:
    layers = {"encoder.query": LoRALayer(torch.zeros(4, 16), torch.zeros(16, 4))}
    digest = digest_for(i)
    return StoredVersion(digest, Adapter(layers, "peft"), {}, report=report_for(digest))


def name_for(name: str, i: int, trial: int | None = None) -> Name:
    digest = digest_for(i)
    history = (Entry(digest, "2026-01-01T00:00:00Z"),)
    on_trial = None if trial is None else Trial("canary", digest_for(trial), 10)
    return Name(Pointer(name, digest, 1, None, history, trial=on_trial), report_for(digest))
