"""How much an adapter changes each layer's weights: the size of the change over the base's own."""

from __future__ import annotations

import torch
from torch import Tensor

from app.adapters.adapter import Adapter, Dense, LoRALayer, Norm, Rows
from app.adapters.base import Base


def weight_changes(adapter: Adapter, base: Base) -> dict[str, float]:
    """||W' - W|| / ||W|| (Frobenius) by module path, in the base's order; biases are not counted."""
    found = {}
    changes: dict[str, LoRALayer | Dense | Norm | Rows] = {
        **adapter.layers,
        **adapter.replaced,
        **adapter.norms,
        **adapter.embeddings,
    }
    for path in [*base.embeddings, *base.linears, *base.norms]:
        if path in changes:
            weight = base.weight(path).detach().cpu().float()
            norm = torch.linalg.vector_norm(_changed(changes[path], weight) - weight)
            found[path] = float(norm / torch.linalg.vector_norm(weight))
    return found


def _changed(change: LoRALayer | Dense | Norm | Rows, weight: Tensor) -> Tensor:
    if isinstance(change, Dense | Norm):
        return change.weight
    if isinstance(change, LoRALayer):
        own = weight if change.gain is None else change.gain[:, None] * weight
        return own + change.B @ change.A
    table = weight if change.table is None else change.table
    table = table if change.gain is None else table * change.gain
    if change.A is not None and change.B is not None:
        table = table + change.A @ change.B.T
    if change.slot is not None and change.rows is not None:
        table = torch.where((change.slot >= 0)[:, None], change.rows[change.slot], table)
    return table
