"""One version's files -> a resident version: read, account for every tensor, fold, measure.

Knows files, tensors and the base; knows no names of adapters.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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
from app.model.batch import Item, Want
from app.model.delta import Layers, unmerged_layers
from app.model.encoder import Delta, Encoder

PROBE = "The quick brown fox jumps over the lazy dog; nothing here was easy, but it was worth it."


async def load_version(
    engine: Engine,
    probe_ids: list[int],
    folder: Path,
    digest: str,
    said: dict[str, Any],
    *,
    allow_noop: bool,
) -> Version:
    """folder: a version's files. said: what `said_of` kept of the query. Raises AdapterRejected."""
    encoder = engine.encoder
    adapter, facts = await asyncio.to_thread(_read, folder, said, encoder)
    if adapter.pooling == "pooler" and not encoder.shape.has_pooler:
        raise AdapterRejected("its pooling is the pooler, and this base has none")
    adapter = await asyncio.to_thread(move, adapter, encoder.device, encoder.dtype)
    layers = await asyncio.to_thread(unmerged_layers, adapter)
    delta = await engine.call(lambda: encoder.measure(probe_ids, layers))
    _refuse_no_effect(delta, allow_noop)
    await _refuse_overflow(engine, probe_ids, adapter, layers)
    return Version(digest, adapter, _report(digest, adapter, delta, facts, encoder), layers, layers)


def said_of(options: Options) -> dict[str, Any]:
    """What the query said that differs from saying nothing; part of the version's identity."""
    return {k: v for k, v in asdict(options).items() if v is not None}


def _read(folder: Path, said: dict[str, Any], encoder: Encoder) -> tuple[Adapter, dict[str, Any]]:
    """(adapter, facts for the report)."""
    weights = read_tensors(folder / WEIGHTS)
    config, model_config = (
        read_json(folder / f) if (folder / f).exists() else {} for f in (CONFIG, MODEL_CONFIG)
    )
    labels = said.get("labels")
    options = Options(**{**said, "labels": None if labels is None else tuple(labels)})
    recipe = read_recipe(config, model_config, weights.metadata, options)
    facts = {
        "bytes": weights.file_bytes,
        "tensors": len(weights.tensors),
        "warnings": _other_base(recipe.made_for, encoder.files.id),
    }
    adapter = read_adapter(weights.tensors, recipe, encoder.shape)
    if adapter.head is None and options.labels is not None:
        raise AdapterRejected("labels are given in the query, and the file holds no head for them")
    if adapter.head is not None and options.task == "embed":
        raise AdapterRejected("the query says task=embed, and the file holds a classification head")
    return adapter, facts


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


async def _refuse_overflow(
    engine: Engine, probe_ids: list[int], adapter: Adapter, layers: Layers
) -> None:
    if adapter.head is None:
        return
    item = Item(probe_ids, [0] * len(probe_ids), Want("logits"), layers, adapter.head)
    logits = (await engine.call(lambda: engine.encoder.run([item])))[0]
    if not torch.isfinite(logits).all():
        raise AdapterRejected("with its head the probe text's logits are NaN or infinity")


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
