"""The product with int8 weights on the CPU, compiled by numba: one call a layer, for any rows.

Each row of x becomes whole numbers of up to 16 bits by a scale of its own, so activations lose next
to nothing. Two neighbouring inputs at a time meet their weights in one instruction: vpmaddwd, which
AVX2 runs as often as float32's, over twice as many numbers; AVX-512's VNNI sums in it as well. Sums
of whole numbers are exact: a row's bits depend neither on the rows beside it nor on the processor
(docs/decisions/0025). Knows rows and addresses; knows no models.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int8, types
from numba.core import cgutils
from numba.extending import intrinsic

from app.model.compiled import compiled
from app.model.machine import first_line
from app.model.vectors import at, load, splat, store

ROWS, OUTPUTS = 6, 16  # of one tile: its sums fill 12 of AVX2's 16 vector registers
BLOCK_ROWS = 96  # quantised at a time: they stay in the second cache, as this many weights do
BLOCK_BYTES = 128 << 10
MOST = 127  # of a weight; as far below 0 as above
INT16, INT32 = 2**15 - 1, 2**31 - 1
TINY = np.float32(1e-30)  # a row whose largest number is below is a row of zeros
ROUND = np.float32(1.5 * 2**23)  # added and taken away, a float32 is a whole number, ties to even
NUMPY_SERVES = "numpy sums in float64, many times slower"


def steps_of(weights: np.ndarray) -> np.float32:
    """How many steps a row's numbers get on each side of 0, where no sum over int8 weights
    [out, in] may leave 32 bits.
    """
    most = int(np.abs(weights.astype(np.int32)).sum(1).max(initial=1))
    return np.float32(min(INT16, INT32 // max(most, 1)))


def packed(weights: np.ndarray) -> np.ndarray:
    """int8 [out, in] -> [tiles, pairs of inputs, OUTPUTS * 2], as a tile reads them; 0 beyond."""
    out, inputs = weights.shape
    whole = np.zeros((-(-out // OUTPUTS) * OUTPUTS, -(-inputs // 2) * 2), np.int8)
    whole[:out, :inputs] = weights
    tiles = whole.reshape(-1, OUTPUTS, whole.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tiles).reshape(len(tiles), -1, OUTPUTS * 2)


def unpacked(tiles: np.ndarray, out: int, inputs: int) -> np.ndarray:
    """What packed was given: int8 [out, in]."""
    whole = tiles.reshape(len(tiles), -1, OUTPUTS, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(whole.reshape(len(tiles) * OUTPUTS, -1)[:out, :inputs])


@intrinsic  # type: ignore[untyped-decorator]
def _tile(
    _typing: Any,
    _x: Any,
    _x_stride: Any,
    _weights: Any,
    _pairs: Any,
    _scales: Any,
    _scale: Any,
    _shift: Any,
    _y: Any,
    _y_stride: Any,
) -> Any:
    """ROWS rows times one tile of weights: addresses, strides in bytes, how many pairs of inputs.

    _scales: the rows'; _scale, _shift: the tile's outputs'.
    """

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, x_stride, weights, pairs, scales, scale, shift, y, y_stride = args
        sums = _sums(builder, x, x_stride, weights, pairs)
        factor, constant = (load(builder, address, FLOATS) for address in (scale, shift))
        for i, total in enumerate(sums):
            own = splat(builder, load(builder, at(builder, scales, 4 * i), ir.FloatType()), OUTPUTS)
            product = builder.fmul(
                builder.sitofp(builder.load(total), FLOATS), builder.fmul(own, factor)
            )
            row = builder.add(y, builder.mul(y_stride, ir.Constant(ir.IntType(64), i)))
            store(builder, row, builder.fadd(product, constant))

    return types.void(*[types.int64] * 9), generate


INTS = ir.VectorType(ir.IntType(32), OUTPUTS)
FLOATS = ir.VectorType(ir.FloatType(), OUTPUTS)
PAIRS = ir.VectorType(ir.IntType(32), OUTPUTS * 2)
BYTES = ir.VectorType(ir.IntType(8), OUTPUTS * 2)
SHORTS = ir.VectorType(ir.IntType(16), OUTPUTS * 2)


def _sums(builder: Any, x: Any, x_stride: Any, weights: Any, pairs: Any) -> list[Any]:
    """Where the sums of each row are: a vector of 32 bits for each output."""
    sums = [cgutils.alloca_once_value(builder, ir.Constant(INTS, None)) for _ in range(ROWS)]
    starts = [
        builder.add(x, builder.mul(x_stride, ir.Constant(ir.IntType(64), i))) for i in range(ROWS)
    ]
    even, odd = (ir.Constant(INTS, list(range(first, OUTPUTS * 2, 2))) for first in (0, 1))
    with cgutils.for_range(builder, pairs) as loop:
        tile = builder.sext(load(builder, at(builder, weights, 0, loop.index, 32), BYTES), PAIRS)
        for start, total in zip(starts, sums, strict=True):
            pair = load(builder, at(builder, start, 0, loop.index, 4), ir.IntType(32))
            numbers = builder.sext(builder.bitcast(splat(builder, pair, OUTPUTS), SHORTS), PAIRS)
            products = builder.mul(tile, numbers)
            first, second = (builder.shuffle_vector(products, products, m) for m in (even, odd))
            builder.store(builder.add(builder.load(total), builder.add(first, second)), total)
    return sums


@compiled()
def _quantise(x: Any, steps: Any, numbers: Any, scales: Any) -> None:
    """x [R, in] float32 -> numbers [R, in or one more] int16, of -steps to steps; scales [R].

    The largest is found among the floats' bits, where NaN is above all: its row's scale is NaN.
    """
    bits = x.view(np.int32)
    largest = np.zeros(1, np.int32)
    for t in range(len(x)):
        most = np.int32(0)
        for k in range(x.shape[1]):
            most = np.int32(max(most, np.int32(bits[t, k] & np.int32(0x7FFFFFFF))))
        largest[0] = most
        top = largest.view(np.float32)[0]
        factor = steps / top if top > TINY else np.float32(0)
        for k in range(x.shape[1]):
            numbers[t, k] = np.int16(np.int32((x[t, k] * factor + ROUND) - ROUND))
        scales[t] = top / steps


@compiled()
def _multiply_block(
    numbers: Any, scales: Any, weights: Any, scale: Any, shift: Any, y: Any, spare: Any
) -> None:
    """y [R, tiles * OUTPUTS] of the first R rows of numbers, BLOCK_BYTES of weights at a time."""
    stride = weights.strides[0]
    some = max(1, BLOCK_BYTES // stride)
    for start in range(0, len(weights), some):
        for row in range(0, len(y), ROWS):
            rows = len(y) - row
            whole = rows >= ROWS  # else what is past the last row goes into `spare`
            for tile in range(start, min(start + some, len(weights))):
                column = 4 * OUTPUTS * tile
                _tile(
                    numbers.ctypes.data + row * numbers.strides[0],
                    numbers.strides[0],
                    weights.ctypes.data + tile * stride,
                    weights.shape[1],
                    scales.ctypes.data + 4 * row,
                    scale.ctypes.data + column,
                    shift.ctypes.data + column,
                    y.ctypes.data + row * y.strides[0] + column if whole else spare.ctypes.data,
                    y.strides[0] if whole else 4 * OUTPUTS,
                )
                _copy(spare, y, 0 if whole else rows, tile)


@compiled()
def _copy(spare: Any, y: Any, rows: int, tile: int) -> None:
    """The first of `spare` to the last of y, in this tile's columns."""
    for i in range(rows):
        for j in range(OUTPUTS):
            y[len(y) - rows + i, OUTPUTS * tile + j] = spare[i, j]


@compiled(nogil=True)
def multiply(x: Any, weights: Any, scale: Any, shift: Any, steps: Any, y: Any) -> None:
    """y = x @ W.T + shift, W[o] = scale[o] * the int8 weights of o.

    x [T, in], y [T, tiles * OUTPUTS] float32, contiguous; y's last columns may be padding. weights:
    packed. scale, shift [tiles * OUTPUTS] float32. steps: steps_of(weights).
    """
    at_once = min(BLOCK_ROWS, -(-len(x) // ROWS) * ROWS)
    numbers = np.zeros((at_once, 2 * weights.shape[1]), np.int16)
    scales, spare = np.zeros(at_once, np.float32), np.empty((ROWS, OUTPUTS), np.float32)
    for first in range(0, len(x), at_once):
        rows = slice(first, min(first + at_once, len(x)))
        _quantise(x[rows], steps, numbers, scales)
        _multiply_block(numbers, scales, weights, scale, shift, y[rows], spare)


def in_numpy(
    x: np.ndarray,
    weights: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    steps: np.float32,
    y: np.ndarray,
) -> None:
    """multiply's twin: the same, to the bit."""
    numbers_of = unpacked(weights, y.shape[1], x.shape[1]).T.astype(np.float64)
    with np.errstate(all="ignore"):
        top = np.abs(x).max(1, keepdims=True)
        factor = np.where(top > TINY, steps / top, np.float32(0))
        sums = np.nan_to_num(np.rint(x * factor)).astype(np.float64) @ numbers_of
        y[:] = sums.astype(np.float32) * (top / steps * scale) + shift


def compile_only() -> None:
    """Compile for NUMBA_CPU_NAME, be it another processor than this one."""
    rows, vector = float32[:, ::1], float32[::1]
    multiply.compile((rows, int8[:, :, ::1], vector, vector, float32, rows))


@cache
def why_not() -> str | None:
    """Why numpy has to serve instead, in words; None where the kernel runs and is right.

    Tried once a process; blocks while it is compiled.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(-MOST, MOST, (40, 51), np.int8, endpoint=True)
    x, scale, shift = (rng.standard_normal(s, np.float32) for s in ((13, 51), 48, 48))
    x[0], weights[0] = 1, MOST  # the largest sum that there can be
    y, exact = np.empty((2, 13, 48), np.float32)
    arguments = x, packed(weights), scale, shift, steps_of(weights)
    in_numpy(*arguments, exact)
    try:
        multiply(*arguments, y)
    except Exception as error:  # whatever numba or LLVM raises
        return f"numba does not run here ({first_line(error)}), {NUMPY_SERVES}"
    return None if np.array_equal(y, exact) else f"numba is wrong here, {NUMPY_SERVES}"
