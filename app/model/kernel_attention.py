"""Attention of short texts on the CPU, compiled by numba: one call a layer, for all lengths.

torch takes one call for each length, and a text is a fraction of its tile. Here a text's keys are
turned into columns, and a tile of scores, or of answers, stays in registers. A row's sums run in
one order whatever stands beside it, so its bits do not depend on the batch. Longer texts are
torch's, which shares them among cores. Knows addresses, rows and widths; knows no models.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from app.model import vector_tiles, vectors
from app.model.compiled import compiled
from app.model.machine import first_line
from app.model.vectors import FLOATS, INTEGER, LANES, across, at, load, splat, store

LONGEST = 64  # tokens of a text; also on many cores this takes less than the products beside it
ROWS = 6  # of a tile: with two vectors of columns it fills AVX2's registers
WIDE = 2 * LANES  # columns
TOLERANCE = 1e-5
RUNS_SERVE = "one call of torch for each length serves"

_wide = vector_tiles.products(ROWS, 2, added=False)
_narrow = vector_tiles.products(ROWS, 1, added=False)


@intrinsic  # type: ignore[untyped-decorator]
def _softmax(_typing: Any, _row: Any, _count: Any, _vectors: Any, _scale: Any) -> Any:
    """row[: count] = softmax(scale * row[: count]), and 0 in what is left of the last vector."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row, count, number, scale = args
        every = splat(builder, scale, LANES)
        nothing, zero = ir.Constant(FLOATS, [-np.inf] * LANES), ir.Constant(FLOATS, None)
        top, total = (cgutils.alloca_once_value(builder, value) for value in (nothing, zero))
        with cgutils.for_range(builder, number) as loop:
            place = at(builder, row, 0, loop.index, 4 * LANES)
            score = builder.fmul(load(builder, place, FLOATS), every)
            score = builder.select(_inside(builder, loop.index, count), score, nothing)
            store(builder, place, score)
            builder.store(vectors.larger(builder, score, builder.load(top)), top)
        most = across(builder, builder.load(top), vectors.larger)
        with cgutils.for_range(builder, number) as loop:
            place = at(builder, row, 0, loop.index, 4 * LANES)
            power = vectors.exp(builder, builder.fsub(load(builder, place, FLOATS), most))
            power = builder.select(_inside(builder, loop.index, count), power, zero)
            store(builder, place, power)
            builder.store(builder.fadd(builder.load(total), power), total)
        whole = across(builder, builder.load(total), lambda builder, a, b: builder.fadd(a, b))
        part = builder.fdiv(ir.Constant(FLOATS, [1.0] * LANES), whole)
        with cgutils.for_range(builder, number) as loop:
            place = at(builder, row, 0, loop.index, 4 * LANES)
            store(builder, place, builder.fmul(load(builder, place, FLOATS), part))

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _inside(builder: Any, index: Any, count: Any) -> Any:
    """Which numbers of the index-th vector are among the first `count`."""
    first = builder.mul(index, ir.Constant(INTEGER, LANES))
    steps = ir.Constant(ir.VectorType(INTEGER, LANES), list(range(LANES)))
    numbers = builder.add(splat(builder, first, LANES), steps)
    return builder.icmp_signed("<", numbers, splat(builder, count, LANES))


@compiled()
def _multiply(left: Any, inner: int, right: Any, columns: int, out: Any, spare: int) -> None:
    """out = left @ right for a tile's rows. left, out: address, first row, last row, stride; right:
    address, stride.
    """
    column = 0
    while column + WIDE <= columns:
        ahead = 4 * column
        _wide(*left, inner, right[0] + ahead, right[1], out[0] + ahead, *out[1:], spare)
        column += WIDE
    while column < columns:
        ahead = 4 * column
        _narrow(*left, inner, right[0] + ahead, right[1], out[0] + ahead, *out[1:], spare)
        column += LANES


@compiled()
def _attend_one(places: Any, strides: Any, rows: Any, width: int, scale: Any, room: Any) -> None:
    """One head of one text. places: where q, k, v and out of the head begin, by address; rows: of
    the text, first and last. room: see attend."""
    turned, scores, spare = room
    first, last = rows
    count = last - first + 1
    whole = -(-count // LANES) * LANES
    columns, stride = turned.ctypes.data, turned.strides[0]
    for i in range(0, whole, LANES):
        for c in range(0, width, LANES):
            at = columns + c * stride + 4 * i
            vector_tiles.turn(places[1] + 4 * c, first + i, last, strides[1], at, stride)
    tile = (scores.ctypes.data, 0, ROWS - 1, scores.strides[0])
    values = (places[2] + first * strides[2], strides[2])
    for row in range(first, last + 1, ROWS):
        queries, answers = (places[0], row, last, strides[0]), (places[3], row, last, strides[3])
        _multiply(queries, width, (columns, stride), whole, tile, spare.ctypes.data)
        for i in range(ROWS):
            _softmax(tile[0] + i * tile[3], count, whole // LANES, scale)
        _multiply(tile, count, values, width, answers, spare.ctypes.data)


@compiled(nogil=True)
def attend(places: Any, strides: Any, out: Any, texts: Any, heads: int, scale: Any) -> None:
    """out[rows of a text] = softmax(scale * q @ k.T) @ v, head by head, for each text.

    places [3], strides [3, 2] int64: of q, k and v the address, and in bytes from one head and one
    row to the next. out [T, heads * d] float32, contiguous; d: a multiple of LANES. texts [S, 2]
    int64: first row and past the last, at most LONGEST.
    """
    width = out.shape[1] // heads
    most = -(-LONGEST // LANES) * LANES
    room = (
        np.empty((width, most), np.float32),
        np.empty((ROWS, most), np.float32),
        np.empty(WIDE, np.float32),
    )
    by_row = (strides[0, 1], strides[1, 1], strides[2, 1], out.strides[0])
    for t in range(len(texts)):
        rows = (texts[t, 0], texts[t, 1] - 1)
        for h in range(heads):
            own = (
                places[0] + h * strides[0, 0],
                places[1] + h * strides[1, 0],
                places[2] + h * strides[2, 0],
                out.ctypes.data + 4 * h * width,
            )
            _attend_one(own, by_row, rows, width, scale, room)


def compile_only() -> None:
    """Compile for NUMBA_CPU_NAME, be it another processor than this one."""
    integers = int64[:, ::1]
    attend.compile((int64[::1], integers, float32[:, ::1], integers, int64, float32))


@cache
def why_not() -> str | None:
    """Why torch has to serve instead, in words; None where the kernel runs and is right.

    Tried once a process; blocks while it is compiled.
    """
    rng = np.random.default_rng(0)
    texts, heads = np.array([(0, 1), (1, 20), (20, 20 + LONGEST)], np.int64), 2
    q, k, v, out = rng.standard_normal((4, texts[-1, 1], heads * LANES), np.float32)
    places = np.array([one.ctypes.data for one in (q, k, v)])
    strides = np.array([(4 * LANES, one.strides[0]) for one in (q, k, v)])
    try:
        attend(places, strides, out, texts, heads, np.float32(0.5))
    except Exception as error:  # whatever numba or LLVM raises
        return f"numba does not run here ({first_line(error)}), {RUNS_SERVE}"
    off = max(_off(q[a:b], k[a:b], v[a:b], out[a:b], heads) for a, b in texts)
    return None if off <= TOLERANCE else f"numba is off by {off:.1e} here, {RUNS_SERVE}"


def _off(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, heads: int) -> float:
    """From softmax(q @ k.T / 2) @ v in float64."""
    a, b, c = (t.reshape(len(t), heads, -1).transpose(1, 0, 2).astype(float) for t in (q, k, v))
    powers = np.exp(0.5 * a @ b.transpose(0, 2, 1))
    exact = (powers / powers.sum(-1, keepdims=True)) @ c
    off = float(np.abs(exact.transpose(1, 0, 2).reshape(out.shape) - out).max())
    return np.inf if np.isnan(off) else off
