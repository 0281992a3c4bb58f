"""The segmented low-rank product: each segment's rows get their own adapter's update.

Knows rows and matrices; nothing of names, models or requests. Layers that read the same input
(query, key, value) share one shrink, x @ [A_q; A_k; A_v].T: it is most of an update's cost
(docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.adapters.adapter import Adapter, Norm, Rows
from app.model.linear import FrozenLinear

SAME_INPUT = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


@dataclass(frozen=True, eq=False)
class Update:
    """One layer's y = gain * y + shift + (x @ A.T) @ B.T, gain and shift [out] where there are any.

    shrink: A, stacked with its neighbours' [R, in]; B [out, r]. part: this layer's columns of the
    shrink's R.
    """

    shrink: Tensor
    part: slice
    B: Tensor
    gain: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Layers:
    """What one adapter does to the encoder, by module path.

    updates: low-rank ones. own: layers that its rows run through in place of the base's, because
    the adapter replaces them whole or is merged. A Linear is in one of the two at most.
    norms, embeddings: what it makes of the other layers.
    """

    updates: Mapping[str, Update] = field(default_factory=dict)
    own: Mapping[str, FrozenLinear] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    embeddings: Mapping[str, Rows] = field(default_factory=dict)


BASE_LAYERS = Layers()


def unmerged_layers(adapter: Adapter) -> Layers:
    """Every low-rank layer as an update, and the layers that the adapter brings whole."""
    groups: dict[tuple[str, int], list[str]] = {}
    for path in adapter.layers:
        parent, _, leaf = path.rpartition(".")
        same = next((i for i, names in enumerate(SAME_INPUT) if leaf in names), None)
        key = (path, -1) if same is None else (parent, same)
        groups.setdefault(key, []).append(path)
    updates: dict[str, Update] = {}
    for paths in groups.values():
        layers = [adapter.layers[path] for path in paths]
        shrink = layers[0].A if len(layers) == 1 else torch.cat([layer.A for layer in layers])
        end = 0
        for path, layer in zip(paths, layers, strict=True):
            start, end = end, end + layer.rank
            updates[path] = Update(shrink, slice(start, end), layer.B, layer.gain, layer.shift)
    own = {
        path: FrozenLinear(dense.weight, dense.bias, keep_weight=False)
        for path, dense in adapter.replaced.items()
    }
    return Layers(updates, own, adapter.norms, adapter.embeddings)


@dataclass(eq=False)
class Shrunk:
    """The shrinks of the input that was last seen, for the neighbouring layers that read it too."""

    _x: Tensor | None = None
    _found: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def of(self, x: Tensor, rows: slice, shrink: Tensor) -> Tensor:
        """x[rows] @ shrink.T; x [T, in] is recognised by identity."""
        if x is not self._x:
            self._x = x
            self._found = {}
        key = (id(shrink), rows.start)
        if key not in self._found:
            self._found[key] = x[rows] @ shrink.T
        return self._found[key]

    def clear(self) -> None:
        """Let go of the last input."""
        self._x = None
        self._found = {}


def add_delta(
    y: Tensor, x: Tensor, updates: Iterable[tuple[slice, Update]], shrunk: Shrunk
) -> Tensor:
    """Add each segment's low-rank update to the frozen layer's output, in place.

    y[rows] = gain * y[rows] + shift + (x[rows] @ A.T) @ B.T; scale and gain are already in B
    (adapters/fold.py).
    Rows of no update are not touched: they stay the base's, bit for bit.

    x [T, in], y [T, out]: packed rows, one dtype. A [r, in], B [out, r]; r may differ.
    Raises RuntimeError (torch) where A or B does not fit the layer.
    Source: Hu et al. 2021, eq. 3; segments as in Punica (Chen et al. 2023).
    """
    for rows, update in updates:
        if update.gain is not None:
            y[rows].mul_(update.gain)
        if update.shift is not None:
            y[rows].add_(update.shift)
        if update.B.shape[1]:
            y[rows].addmm_(shrunk.of(x, rows, update.shrink)[:, update.part], update.B.T)
    return y
