"""How much an adapter changes each layer's weights: the change's size over the base's own.

Works on the CPU, in float32. Knows no model: the base is its frozen tensors.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.values import Adapter, Dense, LoRALayer, Norm, Rows

WORDS = ("word_embeddings", "tok_embeddings")  # those that are looked up by token id
MOST_TOKENS = 16


def weight_changes(adapter: Adapter, base: Base) -> dict[str, float]:
    """||W' - W|| / ||W|| (Frobenius) by module path, in the base's order; without biases."""
    sizes = {}
    changes: dict[str, LoRALayer | Dense | Norm | Rows] = {
        **adapter.layers,
        **adapter.replaced,
        **adapter.norms,
        **adapter.embeddings,
    }
    for path in base.modules:
        if path in changes:
            weight = base.weight(path).detach().cpu().float()
            norm = torch.linalg.vector_norm(_changed(changes[path], weight) - weight)
            sizes[path] = float(norm / torch.linalg.vector_norm(weight))
    return sizes


def module_changes(adapter: Adapter, base: Base) -> dict[str, float | None]:
    """weight_changes() with every module of the base; None: the adapter leaves it as it is."""
    return dict.fromkeys(base.modules) | weight_changes(adapter, base)


def changes_a_weight(adapter: Adapter, base: Base) -> bool:
    """Is any weight or bias another one than the base's?"""
    shifts = any(layer.shift is not None for layer in adapter.layers.values())
    return shifts or any(weight_changes(adapter, base).values())


def changed_tokens(adapter: Adapter) -> list[int]:
    """Some of the tokens whose rows the adapter replaces, so that a probe can show what they do."""
    slots = [
        rows.slot
        for path, rows in adapter.embeddings.items()
        if rows.slot is not None and path.endswith(WORDS)
    ]
    return [int(i) for slot in slots for i in (slot >= 0).nonzero().flatten()[:MOST_TOKENS]]


def _changed(change: LoRALayer | Dense | Norm | Rows, weight: Tensor) -> Tensor:
    match change:
        case Dense() | Norm():
            return change.weight
        case LoRALayer():
            own = weight if change.gain is None else change.gain[:, None] * weight
            return own + change.B @ change.A
        case Rows():
            return _changed_rows(change, weight)
        case _:
            assert_never(change)


def _changed_rows(change: Rows, weight: Tensor) -> Tensor:
    table = weight if change.table is None else change.table
    table = table if change.gain is None else table * change.gain
    if change.A is not None and change.B is not None:
        table = table + change.A @ change.B.T
    if change.slot is not None and change.rows is not None:
        table = torch.where((change.slot >= 0)[:, None], change.rows[change.slot], table)
    return table
