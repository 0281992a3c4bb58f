"""Adapter files made by hand, without PEFT: the tutorial's layout and what attackers send."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from app.adapters.base import Base

TINY_LINEARS = {
    f"encoder.layer.{i}.{path}": shape
    for i in range(2)
    for path, shape in {
        "attention.self.query": (32, 32),
        "attention.self.key": (32, 32),
        "attention.self.value": (32, 32),
        "attention.output.dense": (32, 32),
        "intermediate.dense": (64, 32),
        "output.dense": (32, 64),
    }.items()
} | {"pooler.dense": (32, 32)}


def tutorial_tensors(rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A [r, out] and B [in, r] on every Linear of the tiny BERT."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for path, (out, in_) in TINY_LINEARS.items():
        made[f"{path}.lora.A"] = torch.randn(rank, out, generator=rng) * 0.1
        made[f"{path}.lora.B"] = torch.randn(in_, rank, generator=rng) * 0.1
    return made


def tutorial_file(rank: int = 4, seed: int = 0) -> bytes:
    return save(tutorial_tensors(rank, seed))


def peft_tensors(rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """PEFT's keys for query and value of both layers."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for path, (out, in_) in TINY_LINEARS.items():
        if path.endswith(("query", "value")):
            key = f"base_model.model.{path}"
            made[f"{key}.lora_A.weight"] = torch.randn(rank, in_, generator=rng)
            made[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=rng) * 0.1
    return made


def peft_file(rank: int = 4, seed: int = 0) -> bytes:
    return save(peft_tensors(rank, seed))


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tiny_base(**changes: Any) -> Base:
    """A two-layer BERT's shapes with random weights, and no model."""
    rng = torch.Generator().manual_seed(7)
    tables = {"word_embeddings": (80, 32), "position_embeddings": (64, 32)}
    embeddings = {f"embeddings.{name}": shape for name, shape in tables.items()}
    places = [f"encoder.layer.{i}.{at}" for i in (0, 1) for at in ("attention.output", "output")]
    norms = {f"{place}.LayerNorm": 32 for place in ["embeddings", *places]}
    tensors = {}
    for path, shape in {**TINY_LINEARS, **embeddings}.items():
        tensors[f"{path}.weight"] = torch.randn(shape, generator=rng)
    for path, width in norms.items():
        tensors[f"{path}.weight"] = torch.ones(width)
    widths = {path: shape[0] for path, shape in TINY_LINEARS.items()} | norms
    for path, width in widths.items():
        tensors[f"{path}.bias"] = torch.randn(width, generator=rng)
    base = Base(
        model_type="bert", prefix="bert", hidden=32, layers=2, vocabulary=80, linears=TINY_LINEARS,
        embeddings=embeddings, norms=norms, tensors=tensors, head={}, has_pooler=True,
        classifier_pooling="cls", classifier_activation="gelu", norm_eps=1e-12,
    )  # fmt: skip
    return replace(base, **changes)
