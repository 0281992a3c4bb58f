"""Operators that stand for what our own code computes while a base's forward is written down.

transformers' modules run once, over tensors without values (flat.py). In the place of each layer
that an adapter may change, and of its attention, stands an operator that knows its answer's shape
and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[..., Tensor]

LIBRARY = "bert_lora"
_library = torch.library.Library(LIBRARY, "DEF")  # type: ignore[no-untyped-call]


def _linear(x: Tensor, path: str, out: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _norm(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


def _embedding(ids: Tensor, path: str, dim: int, dtype: torch.dtype) -> Tensor:
    return ids.new_empty(*ids.shape, dim, dtype=dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None) -> Tensor:
    batch, heads, rows, _ = q.shape
    return q.new_empty(batch, rows, heads, v.shape[3])


for _schema, _shape in (
    ("linear(Tensor x, str path, int out) -> Tensor", _linear),
    ("norm(Tensor x, str path) -> Tensor", _norm),
    ("embedding(Tensor ids, str path, int dim, ScalarType dtype) -> Tensor", _embedding),
    ("attention(Tensor q, Tensor k, Tensor v, float? scale, int? window) -> Tensor", _attention),
):
    _library.define(_schema)  # type: ignore[no-untyped-call]
    _library.impl(_schema.partition("(")[0], _shape, "Meta")  # type: ignore[no-untyped-call]

linear: Operator = torch.ops.bert_lora.linear.default
norm: Operator = torch.ops.bert_lora.norm.default
embedding: Operator = torch.ops.bert_lora.embedding.default
attention: Operator = torch.ops.bert_lora.attention.default
