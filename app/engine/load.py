"""One version's files -> a resident version: read, account for every tensor, fold, measure.

Knows files, tensors and the base; knows no names of adapters.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.adapters.adapter import Adapter, move
from app.adapters.config import Options, read_recipe
from app.adapters.layouts import read_adapter
from app.adapters.registry import Version
from app.adapters.upload import (
    CONFIG,
    MODEL_CONFIG,
    WEIGHTS,
    AdapterRejected,
    Problem,
    read_json,
    read_tensors,
)
from app.engine.engine import Engine
from app.model.delta import unmerged_layers
from app.model.encoder import Delta, Encoder

PROBE = "The quick brown fox jumps over the lazy dog; nothing here was easy, but it was worth it."
ALLOW_NOOP = "allow_noop"


async def load_version(
    engine: Engine, probe_ids: list[int], folder: Path, digest: str, said: dict[str, Any]
) -> Version:
    """folder: a version's files. said: what `said_of` kept of the query. Raises AdapterRejected."""
    encoder = engine.encoder
    adapter, facts = await asyncio.to_thread(_read, folder, said, encoder)
    if adapter.pooling == "pooler" and not encoder.shape.has_pooler:
        raise AdapterRejected("its pooling is the pooler, and this base has none")
    adapter = await asyncio.to_thread(move, adapter, encoder.device, encoder.dtype)
    layers = await asyncio.to_thread(unmerged_layers, adapter)
    delta = await engine.call(lambda: encoder.measure(probe_ids, layers))
    _refuse_no_effect(delta, bool(said.get(ALLOW_NOOP)))
    return Version(digest, adapter, _report(digest, adapter, delta, facts, encoder), layers, layers)


def said_of(options: Options, allow_noop: bool) -> dict[str, Any]:
    """What the query said that differs from saying nothing; part of the version's identity."""
    said = {k: v for k, v in asdict(options).items() if v is not None}
    return {**said, ALLOW_NOOP: True} if allow_noop else said


def _read(folder: Path, said: dict[str, Any], encoder: Encoder) -> tuple[Adapter, dict[str, Any]]:
    """(adapter, facts for the report)."""
    weights = read_tensors(folder / WEIGHTS)
    config, model_config = (
        read_json(folder / f) if (folder / f).exists() else {} for f in (CONFIG, MODEL_CONFIG)
    )
    options: dict[str, Any] = {k: v for k, v in said.items() if k != ALLOW_NOOP}
    if "labels" in options:
        options["labels"] = tuple(options["labels"])
    recipe = read_recipe(config, model_config, weights.metadata, Options(**options))
    facts = {
        "bytes": weights.file_bytes,
        "tensors": len(weights.tensors),
        "warnings": _other_base(recipe.made_for, encoder.files.id),
    }
    return read_adapter(weights.tensors, recipe, encoder.shape), facts


def _other_base(made_for: str | None, base: str) -> list[str]:
    """A warning where the config names another base; folders and organisations may differ."""
    if not made_for or Path(made_for).name.lower() == Path(base).name.lower():
        return []
    return [f"made for {made_for!r}, as its config says; its shapes fit this base, {base}"]


def _refuse_no_effect(delta: Delta, allow_noop: bool) -> None:
    if not all(math.isfinite(n) for n in (delta.relative, *delta.layers)):
        raise AdapterRejected("with this adapter the base gives NaN or infinity on the probe text")
    if delta.relative == 0 and not allow_noop:
        raise AdapterRejected(
            "the adapter leaves the base's output unchanged (an untrained one?): it would do "
            "nothing; send ?allow_noop=true if that is meant",
            [Problem("every lora_B is zero, or the targets do not reach the output")],
        )


def _report(
    digest: str, adapter: Adapter, delta: Delta, facts: dict[str, Any], encoder: Encoder
) -> dict[str, Any]:
    """The part of API.md's adapter object that belongs to the version, not to the name."""
    length = encoder.max_length
    return {
        "version": digest,
        "task": adapter.task,
        "labels": list(adapter.labels),
        "layout": adapter.layout,
        "rank": adapter.rank,
        "scale": adapter.scale,
        "targets": adapter.targets,
        "bytes": facts["bytes"],
        "resident_bytes": adapter.resident_bytes,
        "tensors": {"in_file": facts["tensors"], "used": facts["tensors"], "ignored": []},
        "delta": {"relative": delta.relative, "layers": delta.layers},
        "pooling": adapter.pooling or encoder.files.pooling,
        "max_length": min(adapter.max_length or length, length),
        "warnings": facts["warnings"],
    }
