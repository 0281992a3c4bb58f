"""Which product serves a Linear on a GPU: one launch with all updates, or cuBLAS and two more.

The one launch is product_cuda.py's. It serves where it gives float64's answers and is faster, both
tried at start. Then it serves every batch, with or without updates, so that a row's bits depend on
neither. Import it only where Triton is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from app.adapters.values import LoRALayer, tensors_of
from app.model import kernel_cuda
from app.model.kernel import FIELDS, entry_of
from app.model.kernel_cuda import LOAD_BYTES, TOLERANCE, Plan
from app.model.linear import FrozenLinear
from app.model.machine import first_line
from app.model.product_cuda import product
from app.model.tiles import APART, Tile, card_of, tile_of, tiles_for

TRIED_RANKS = (8, 1, 40, 0)
TIMED = ((64, 1), (512, 8), (4096, 16))  # rows, adapters of rank 8
PLAIN_ROWS = (2049, 4096, 8192, 16384)  # from the first on cuBLAS may serve what has no updates
THREE = "cuBLAS, shrink and expand serve instead"


class Fused:
    """The product of one Linear, or of several of one width that read the same rows, with all
    updates of it."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, members: int = 1, plain: bool = False
    ) -> None:
        """weight [out, in], bias [out]: of all of them. plain: see plain_agrees."""
        self.weight, self.members, self.width = weight.detach(), members, len(weight) // members
        self.given = bias
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        self.card = card_of(weight.device)
        self.tiles = tiles_for(self.card, weight.dtype)
        self.plain = plain
        self._boxes: dict[Tile, Any] = {}  # of W, for copies in bulk

    def takes(self, plan: Plan, number: int) -> bool:
        """Whether its launch does these updates, too; not where too many meet in a tile."""
        return self._crowd(plan, number) <= APART

    def _crowd(self, plan: Plan, number: int) -> float:
        return max(plan.crowd[number : number + self.members])

    def __call__(self, x: Tensor, plan: Plan | None, number: int) -> Tensor:
        """x [T, in] -> y [T, out]. plan: None for the product alone; number: of the first."""
        if plan is None and self.plain and len(x) >= PLAIN_ROWS[0]:
            return F.linear(x, self.weight, self.given)
        crowd = 0.0 if plan is None else self._crowd(plan, number)
        tile = tile_of(self.tiles, self.card, len(x), len(self.weight), self.width, crowd)
        return self.through(tile, x, plan, number)

    def through(self, tile: Tile, x: Tensor, plan: Plan | None, number: int) -> Tensor:
        """The same in tiles of this form."""
        if not x.is_contiguous() or x.data_ptr() % LOAD_BYTES:
            x = x.clone(memory_format=torch.contiguous_format)
        (T, in_), out = x.shape, len(self.weight)
        y = x.new_empty(T, out)
        stride = 0 if plan is None else plan.table.shape[1] * FIELDS
        none = (_nothing(x.device),) * 3
        of_plan = none if plan is None else (plan.edges, plan.spans, plan.table)
        count = 0 if plan is None else len(plan.edges)
        operands = self._in_bulk(tile, x) if self.card.bulk else (x, self.weight)
        numbers = (T, number * stride, count, in_, out, self.width, stride)
        precision = kernel_cuda.precision(x.device)
        form = (tile.rows, tile.columns, tile.inner, tile.sums, precision, self.card.bulk)
        arguments = (*operands, self.weight, self.bias, y, *of_plan, *numbers, *form)
        grid = -(-T // tile.rows) * -(-out // tile.columns), 1, 1
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _launch(tile, grid, x, (in_, out, self.width, self.card.bulk), arguments)
        return y

    def _in_bulk(self, tile: Tile, x: Tensor) -> tuple[Any, Any]:
        box = self._boxes.get(tile)
        if box is None:
            shape = [tile.columns, tile.inner]
            box = self._boxes[tile] = TensorDescriptor.from_tensor(self.weight, shape)
        return TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]), box


def fused(frozen: FrozenLinear, members: int) -> Fused:
    """Of what serves on a GPU until now, with a plain weight."""
    weight = frozen.weight
    assert weight is not None
    plain = plain_agrees(weight.device, weight.dtype, *weight.shape)
    return Fused(weight, frozen.bias, members, plain)


_compiled: dict[tuple[Any, ...], Any] = {}  # as kernel_cuda's


def _launch(
    tile: Tile, grid: tuple[int, int, int], x: Tensor, of: tuple[int, ...], arguments: Any
) -> None:
    key = (tile, x.dtype, x.device, of)
    found = _compiled.get(key)
    if found is None:
        more = {} if tile.registers is None else {"maxnreg": tile.registers}
        launch = product[grid]
        _compiled[key] = launch(*arguments, num_warps=tile.warps, num_stages=tile.stages, **more)
    else:
        found[grid](*arguments)


@cache
def _nothing(device: torch.device) -> Tensor:
    return torch.zeros(2, dtype=torch.int64, device=device)


def chosen(
    device: torch.device, dtype: torch.dtype, shapes: Collection[tuple[int, int]]
) -> tuple[frozenset[tuple[int, int]], str | None]:
    """The (out, in) that one launch serves, tried on a Linear each; and what is wrong, in words.

    Linears of such a shape that read the same rows may be one: out is a multiple of a tile's.
    """
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return frozenset(), None  # TF32 is what cuBLAS is asked for, and the kernels do not do
    try:
        tiles = tiles_for(card_of(device), dtype)
        fitting = [s for s in sorted(set(shapes)) if tiles and _fits(tiles[-1], *s)]
        worst = max((_worst(device, dtype, *shape) for shape in fitting), default=0.0)
        if not worst <= TOLERANCE[dtype]:
            return frozenset(), f"Triton's product is off by {worst:.1e} here, {THREE}"
        return frozenset(s for s in fitting if _faster(device, dtype, *s)), None
    except Exception as error:  # whatever a compiler or a driver raises
        return frozenset(), f"Triton's product does not run here ({first_line(error)}), {THREE}"


def _fits(narrowest: Tile, out: int, in_: int) -> bool:
    return out % narrowest.columns == 0 and in_ % narrowest.inner == 0


def _worst(device: torch.device, dtype: torch.dtype, out: int, in_: int) -> float:
    """The largest error in any tile's form; infinite where a row's bits depend on the form."""
    rows = np.array([(3, 40), (40, 41), (41, 110), (110, 120)], np.int64)
    linear, x, layers, plan = _drawn(device, dtype, out, in_, rows, TRIED_RANKS, True)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    for (start, stop), layer in zip(rows.tolist(), layers, strict=True):
        A, B, gain, shift = (t.double() for t in tensors_of(layer))
        exact[start:stop] = exact[start:stop] * gain + shift + x[start:stop].double() @ A.T @ B.T
    first, off = linear.through(linear.tiles[0], x, None, 0), 0.0
    for tile in linear.tiles:
        plain, y = linear.through(tile, x, None, 0), linear.through(tile, x, plan, 1)
        same = x.device.type == "cpu" or torch.equal(plain, first)  # numpy's sums go by the tile
        if not same or not torch.equal(y[:3], plain[:3]):
            return float("inf")
        off = max(off, float(((y.double() - exact).abs().max() / exact.abs().max()).nan_to_num(9)))
    return off


def _drawn(
    device: torch.device,
    dtype: torch.dtype,
    out: int,
    in_: int,
    rows: np.ndarray,
    ranks: tuple[int, ...],
    rescaled: bool,
) -> tuple[Fused, Tensor, list[LoRALayer], Plan]:
    """A Linear, x, a layer a segment, and a plan in which it is the second of two Linears."""
    rng = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device).to(dtype)

    layers = []
    for rank in ranks:
        more = (draw(out), draw(out)) if rescaled else ()
        layers.append(LoRALayer(draw(rank, in_) / in_**0.5, draw(rank, out).T, *more))
    table = np.zeros((2, len(rows), FIELDS), np.int64)
    table[1] = [entry_of(layer) for layer in layers]
    linear = Fused(draw(out, in_) / in_**0.5, draw(out))
    return linear, draw(int(rows.max()), in_), layers, kernel_cuda.plan(rows, table, device)


def _faster(device: torch.device, dtype: torch.dtype, out: int, in_: int) -> bool:
    """Whether one launch takes less time than three, over few rows and many on average."""
    ratios = []
    for count, segments in TIMED:
        ends = np.arange(segments + 1) * count // segments
        rows = np.stack([ends[:-1], ends[1:]], axis=1)
        linear, x, _, plan = _drawn(device, dtype, out, in_, rows, (8,) * segments, False)

        def three(linear: Fused = linear, x: Tensor = x, plan: Plan = plan) -> None:
            y = F.linear(x, linear.weight, linear.bias)
            kernel_cuda.add_updates(y, x, plan, 1)

        def one(linear: Fused = linear, x: Tensor = x, plan: Plan = plan) -> None:
            linear(x, plan, 1)

        ratios.append(clock(one) / clock(three))
    return sum(ratios) < len(ratios)


def clock(run: Callable[[], None], times: int = 20) -> float:
    """Milliseconds of so many runs on the card, without what Python takes to launch them."""
    run()
    graph = torch.cuda.CUDAGraph()
    found: list[float] = []
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return min(found)


@cache
def plain_agrees(device: torch.device, dtype: torch.dtype, out: int, in_: int) -> bool:
    """Whether cuBLAS gives a row of many the same bits: then it serves what has no updates."""
    if dtype == torch.float32:
        return False
    rng = torch.Generator(device).manual_seed(0)
    weight, bias, x = (
        torch.randn(*shape, generator=rng, device=device).to(dtype)
        for shape in ((out, in_), (out,), (PLAIN_ROWS[-1], in_))
    )
    linear = Fused(weight, bias)
    whole = linear(x, None, 0)
    return all(torch.equal(F.linear(x[:n], weight, bias), whole[:n]) for n in PLAIN_ROWS)
