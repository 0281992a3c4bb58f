"""The segmented low-rank product: each segment's rows get their own adapter's update.

Knows rows and matrices; nothing of names, models or requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from app.adapters.adapter import LoRALayer


def add_delta(y: Tensor, x: Tensor, updates: Iterable[tuple[slice, LoRALayer]]) -> Tensor:
    """Add each segment's low-rank update to the frozen layer's output, in place.

    y[rows] += (x[rows] @ A.T) @ B.T; the scale is already in B (adapters/adapter.py).
    Rows of no update are not touched: they stay the base's, bit for bit.

    x [T, in], y [T, out]: packed rows, one dtype. A [r, in], B [out, r]; r may differ.
    Raises RuntimeError (torch) where A or B does not fit the layer.
    Source: Hu et al. 2021, eq. 3; segments as in Punica (Chen et al. 2023).
    """
    for rows, lora in updates:
        y[rows].addmm_(x[rows] @ lora.A.T, lora.B.T)
    return y
