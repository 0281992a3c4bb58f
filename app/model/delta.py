"""The segmented low-rank product: each segment's rows get their own adapter's update.

A CPU runs it through kernel.py and a GPU through kernel_cuda.py, few calls a layer. Where these do
not serve, torch computes the same formula segment by segment. Knows rows and matrices; knows no
names, models or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.adapters.values import PART_BYTES, Adapter, LoRALayer, Norm, Rows
from app.model import kernel
from app.model.linear import FrozenLinear

if TYPE_CHECKING:
    from app.model.kernel_cuda import Plan


@dataclass(frozen=True, eq=False)
class Layers:
    """What one adapter does to the encoder, by module path.

    updates: low-rank ones. own: layers that its rows run through in place of the base's, because
    the adapter replaces them whole or is merged. A Linear is in one of the two at most.
    norms, embeddings: what it makes of the other layers. table [the base's Linears, kernel.FIELDS]:
    the updates by address, for the kernels; None where none serves.
    """

    updates: Mapping[str, LoRALayer] = field(default_factory=dict)
    own: Mapping[str, FrozenLinear] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    embeddings: Mapping[str, Rows] = field(default_factory=dict)
    table: np.ndarray | None = None

    @cached_property
    def widest(self) -> int | None:
        """The largest rank of its updates where they are all that it does, and the kernels serve
        them; None where there is more."""
        if self.own or self.norms or self.embeddings:
            return None
        if self.table is None:
            return None if self.updates else 0
        return max(update.rank for update in self.updates.values())


BASE_LAYERS = Layers()
CPU = torch.device("cpu")


def unmerged_layers(adapter: Adapter, linears: Sequence[str]) -> Layers:
    """Every low-rank layer as an update, and the layers that the adapter brings whole.

    linears: the paths of the base's Linears, in the order in which they are numbered.
    """
    own = {
        path: FrozenLinear(dense.weight, dense.bias, keep_weight=False)
        for path, dense in adapter.replaced.items()
    }
    layers = Layers({}, own, adapter.norms, adapter.embeddings)
    return with_updates(layers, adapter.layers, linears)


def with_updates(
    layers: Layers, updates: Mapping[str, LoRALayer], linears: Sequence[str]
) -> Layers:
    """The same layers with these updates in place of theirs."""
    if not updates or not _in_kernels_reach(updates.values()):
        return replace(layers, updates=updates, table=None)
    table = np.zeros((len(linears), kernel.FIELDS), np.int64)
    for i, path in enumerate(linears):
        if path in updates:
            table[i] = kernel.entry_of(updates[path])
    return replace(layers, updates=updates, table=table)


def _in_kernels_reach(updates: Iterable[LoRALayer]) -> bool:
    """Whether all are float32 on the CPU, or anything on one GPU, as values.laid_out lays them out:
    A by rows, B by columns, each part from a multiple of PART_BYTES on."""
    parts = [t for u in updates for t in (u.A, u.B.T, u.gain, u.shift) if t is not None]
    kinds = {(t.device, t.dtype) for t in parts}
    device, dtype = next(iter(kinds))
    served = dtype == torch.float32 if device.type == "cpu" else device.type == "cuda"
    laid_out = all(t.is_contiguous() and t.data_ptr() % PART_BYTES == 0 for t in parts)
    return served and len(kinds) == 1 and laid_out


@dataclass(frozen=True, eq=False)
class Members:
    """The base's Linears that one product serves: their paths, their numbers [M], and where each
    one's columns end, [M + 1] from 0 on."""

    paths: tuple[str, ...]
    numbers: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, eq=False)
class Updates:
    """The updates of one batch: of each segment that has some, its rows and its adapter's layers.

    For the CPU's kernel: rows [S, 2] and table [the base's Linears, S, kernel.FIELDS], both int64.
    For the GPU's: plan. For torch's way: none of them. touched: of each Linear, whether any segment
    updates it; None for torch's way.
    """

    segments: Sequence[tuple[slice, Layers]] = ()
    rows: np.ndarray | None = None
    table: np.ndarray | None = None
    plan: Plan | None = None
    touched: np.ndarray | None = None

    def touch(self, members: Members) -> bool:
        """Whether any of them may be of one of these Linears."""
        if self.touched is None:
            return bool(self.segments)
        return bool(self.touched[members.numbers].any())


NO_UPDATES = Updates()


def gather(
    segments: Sequence[tuple[slice, Layers]], kernels_on: torch.device | None = CPU
) -> Updates:
    """One batch's updates, once for all of its layers.

    kernels_on: the device whose kernel serves; None: torch's way.
    """
    with_some = [(rows, layers) for rows, layers in segments if layers.updates]
    stacked = stack(with_some)
    if kernels_on is None or stacked is None:
        return Updates(with_some)
    rows, table = stacked
    touched = np.array([bool(entries.any()) for entries in table])
    if kernels_on.type == "cpu":
        return Updates(with_some, rows, table, touched=touched)
    from app.model import kernel_cuda

    return Updates(with_some, plan=kernel_cuda.plan(rows, table, kernels_on), touched=touched)


def stack(
    segments: Sequence[tuple[slice, Layers]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Their rows [S, 2] and tables [the base's Linears, S, kernel.FIELDS], int64, for the kernels.

    None where there is no segment, or one that the kernels do not serve.
    """
    tables = [layers.table for _, layers in segments if layers.table is not None]
    if not tables or len(tables) < len(segments):
        return None
    rows = np.array([(rows.start, rows.stop) for rows, _ in segments], np.int64)
    return rows, np.stack(tables, axis=1)


def add_delta(y: Tensor, x: Tensor, updates: Updates, members: Members) -> Tensor:
    """Add each segment's low-rank update to the frozen layers' output, in place.

    y[rows] = gain * y[rows] + shift + (x[rows] @ A.T) @ B.T; scale and gain are already in B
    (adapters/methods/). Rows without an update stay the base's, bit for bit. A layer that none of
    the batch's adapters changes costs nothing, not even a launch.

    x [T, in], y [T, out]: packed rows, one dtype; out: of all members. A [r, in], B [out, r]:
    float32 on the CPU, x's dtype on a GPU; r may differ.
    Raises RuntimeError (torch) where A or B does not fit the layer.
    Source: Hu et al. 2021, eq. 3; segments as in Punica (Chen et al. 2023).
    """
    if not updates.touch(members):
        return y
    if updates.rows is not None and updates.table is not None:
        _run_compiled(y, x, updates.rows, updates.table[members.numbers], members.ends)
        return y
    for i, (path, number) in enumerate(zip(members.paths, members.numbers, strict=True)):
        if updates.touched is not None and not updates.touched[number]:
            continue
        columns = y[:, members.ends[i] : members.ends[i + 1]]
        if updates.plan is not None:
            from app.model import kernel_cuda

            kernel_cuda.add_updates(columns, x.contiguous(), updates.plan, int(number))
            continue
        for rows, layers in updates.segments:
            lora = layers.updates.get(path)
            if lora is not None:
                _add_in_its_dtype(columns[rows], x[rows], lora)
    return y


def _run_compiled(
    y: Tensor, x: Tensor, rows: np.ndarray, tables: np.ndarray, ends: np.ndarray
) -> None:
    """In float32. Of a base in half precision the first to the last row of an update is cast."""
    if y.dtype == torch.float32:
        kernel.add_updates(y.numpy(), x.contiguous().numpy(), rows, tables, ends)
    else:
        first, last = int(rows[0, 0]), int(rows[-1, 1])
        wide = y[first:last].float()
        x = x[first:last].float()
        kernel.add_updates(wide.numpy(), x.numpy(), rows - first, tables, ends)
        y[first:last] = wide  # what no update touched is back to its very bits


def _add_in_its_dtype(y: Tensor, x: Tensor, lora: LoRALayer) -> None:
    """As add_update; in the update's dtype, which on the CPU is float32 whatever the base's is."""
    if y.dtype == lora.A.dtype:
        add_update(y, x, lora)
        return
    wide = y.to(lora.A.dtype)
    add_update(wide, x.to(lora.A.dtype), lora)
    y.copy_(wide)


def add_update(y: Tensor, x: Tensor, lora: LoRALayer) -> None:
    """One segment's update, in place, on any device, all of one dtype: the kernels' twin."""
    if lora.gain is not None:
        y.mul_(lora.gain)
    if lora.shift is not None:
        y.add_(lora.shift)
    if lora.rank:
        y.addmm_(x @ lora.A.T, lora.B.T)
