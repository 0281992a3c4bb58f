"""LLVM's vectors for the kernels that numba compiles: addresses, loads, and sums of float32.

numba turns plain loops into vector code, but neither keeps a tile of sums in registers over a loop
nor adds up many vectors at once. Knows registers; knows no matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from app.model.compiled import lanes

LANES = lanes()
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTEGER = ir.IntType(64)
QUAD = 4  # float32 in 128 bits, within which a shuffle costs least
WHOLE = 1.5 * 2.0**23  # added to a float32 and taken away, it leaves a whole number
LEAST = -87.0  # whose power of e is still a normal float32
LN2_HIGH = 355 / 512  # so that its product with a whole number below 2**14 is exact
FUSED = ("contract",)  # a product and a sum may be one instruction


def at(builder: Any, address: Any, offset: int, index: Any = None, width: int = 0) -> Any:
    """address + offset + index * width, in bytes."""
    if index is not None:
        address = builder.add(address, builder.mul(index, ir.Constant(INTEGER, width)))
    return builder.add(address, ir.Constant(INTEGER, offset))


def load(builder: Any, address: Any, kind: Any) -> Any:
    """From any address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: Any, address: Any, value: Any) -> None:
    """To any address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def splat(builder: Any, value: Any, count: int) -> Any:
    """`count` times the same."""
    empty = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), None)
    return builder.shuffle_vector(one, empty, zeros)


def least(builder: Any, first: Any, second: Any) -> Any:
    """The smaller of two whole numbers."""
    return builder.select(builder.icmp_signed("<", first, second), first, second)


def multiply_add(builder: Any, total: Any, first: Any, second: Any) -> Any:
    """total + first * second, rounded once where the processor can."""
    return builder.fadd(total, builder.fmul(first, second, flags=FUSED), flags=FUSED)


def added_up(builder: Any, vectors: Sequence[Any]) -> Any:
    """One vector: the sum over each of LANES vectors' own numbers, all in the same order."""
    rest = list(vectors)
    for unit in (1, 1, *(QUAD for _ in range((LANES // QUAD).bit_length() - 1))):
        rest = [
            builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in _masks(unit)))
            for a, b in zip(rest[::2], rest[1::2], strict=True)
        ]
    (total,) = rest
    return total


def _masks(unit: int) -> list[Any]:
    """Which numbers of two vectors meet: of each, every second `unit` and its neighbour.

    Within each QUAD for single numbers, between them for whole ones.
    """
    span = QUAD if unit == 1 else LANES
    masks = []
    for odd in (0, 1):
        places = [
            vector * LANES + start + first + i
            for start in range(0, LANES, span)
            for vector in (0, 1)
            for first in range(odd * unit, span, 2 * unit)
            for i in range(unit)
        ]
        masks.append(ir.Constant(ir.VectorType(ir.IntType(32), LANES), places))
    return masks


def larger(builder: Any, first: Any, second: Any) -> Any:
    """The larger of each two numbers; of NaN and a number the second."""
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


def across(builder: Any, vector: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """All of a vector's numbers joined, in every place."""
    width = LANES
    while width := width // 2:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [c ^ width for c in range(LANES)])
        vector = join(builder, vector, builder.shuffle_vector(vector, vector, mask))
    return vector


def transposed(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """The columns of LANES vectors: halves of them trade places, then their halves."""
    rest, width = list(rows), LANES
    while width := width // 2:
        low, high = (_kept_and_traded(width, upper) for upper in (False, True))
        for i in range(LANES):
            if not i & width:
                pair = rest[i], rest[i | width]
                rest[i], rest[i | width] = (
                    builder.shuffle_vector(*pair, mask) for mask in (low, high)
                )
    return rest


def _kept_and_traded(width: int, upper: bool) -> Any:
    """Of two vectors the lower or the upper `width` numbers of every 2 * width, in turn."""
    first = width if upper else 0
    places = [(c - width + LANES if c & width else c) + first for c in range(LANES)]
    return ir.Constant(ir.VectorType(ir.IntType(32), LANES), places)


def exp(builder: Any, x: Any) -> Any:
    """e**x of each number, of which none is above 0; NaN stays. 2**n * e**r, r at most ln(2) / 2.

    e**r is Taylor's series to the 7th power: 5e-9 off, a tenth of a float32's last bit.
    """

    def constant(value: float) -> Any:
        return ir.Constant(FLOATS, [value] * LANES)

    nothing = builder.fcmp_ordered("<", x, constant(LEAST))  # e**x is below a normal float32
    x = builder.select(nothing, constant(LEAST), x)
    whole = multiply_add(builder, constant(WHOLE), x, constant(1 / math.log(2)))
    n = builder.fsub(whole, constant(WHOLE))
    r = multiply_add(builder, x, n, constant(-LN2_HIGH))
    r = multiply_add(builder, r, n, constant(LN2_HIGH - math.log(2)))
    power = constant(1 / math.factorial(7))
    for k in range(6, -1, -1):
        power = multiply_add(builder, constant(1 / math.factorial(k)), power, r)
    integers = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.shl(builder.bitcast(whole, integers), ir.Constant(integers, [23] * LANES))
    scaled = builder.add(builder.bitcast(power, integers), bits)  # n more in the exponent
    found = builder.select(nothing, constant(0.0), builder.bitcast(scaled, FLOATS))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, found)
