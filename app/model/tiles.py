"""How a Linear's product is cut into programs of a GPU, by the card and the number of rows.

Measured on an H100 (docs/decisions/0026). Knows sizes; computes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

APART = 96  # columns of A.T on 128 rows; of more they are no longer worth going along
WIDE_BYTES = 200 << 10  # of shared memory: Hopper's and Blackwell's for data centres


@dataclass(frozen=True)
class Tile:
    """What a program computes at once: rows x columns of y, `inner` numbers of x in a step, `sums`
    columns of A.T along with them.

    least: so many programs for each multiprocessor, or a smaller tile serves. most: columns of A.T
    on 128 rows, or one with more `sums` serves. wide: for cards that multiply from shared memory
    (Hopper's way); others have too few registers for it.
    """

    rows: int
    columns: int
    inner: int
    sums: int
    warps: int
    stages: int
    least: float = 0.0
    most: float = math.inf
    wide: bool = False
    registers: int | None = None

    def shared_bytes(self, itemsize: int) -> int:
        """What a program keeps of x, W and A for the steps to come."""
        return (self.rows + self.columns + self.sums) * self.inner * itemsize * self.stages


# By a number's bytes, the widest first. A row's bits ignore the tile: `inner` is one for a dtype,
# and `sums` one for float32, whose three products are added up a step at a time.
TILES = {
    2: (
        Tile(128, 128, 64, 16, 8, 3, least=0.5, most=16, wide=True, registers=128),
        Tile(128, 256, 64, 32, 8, 4, least=0.75, wide=True),
        Tile(64, 128, 64, 16, 4, 4, least=0.25),
        Tile(64, 64, 64, 16, 4, 4),
    ),
    4: (Tile(64, 128, 32, 16, 4, 3, least=0.5, wide=True), Tile(64, 64, 32, 16, 4, 3)),
}


@dataclass(frozen=True)
class Card:
    """shared_bytes: of one program. bulk: whether tiles come in one copy (Hopper and later)."""

    multiprocessors: int
    shared_bytes: int
    bulk: bool


@cache
def card_of(device: torch.device) -> Card:
    """Of this device; a CPU, which interprets, has room for everything."""
    if device.type == "cpu":
        return Card(1, 1 << 30, bulk=False)
    found = torch.cuda.get_device_properties(device)
    return Card(found.multi_processor_count, found.shared_memory_per_block_optin, found.major >= 9)  # type: ignore[attr-defined]


def tiles_for(card: Card, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those that the card has room for, the widest first; none where the last does not fit."""
    tiles = [t for t in TILES[dtype.itemsize] if not t.wide or card.shared_bytes >= WIDE_BYTES]
    room = card.shared_bytes - (1 << 10)
    fitting = [t for t in tiles if t.shared_bytes(dtype.itemsize) <= room]
    return tuple(fitting) if tiles[-1] in fitting else ()


def tile_of(
    tiles: tuple[Tile, ...], card: Card, rows: int, out: int, width: int, crowd: float
) -> Tile:
    """The first that has enough programs, and is not too crowded: see Plan.crowd."""
    for tile in tiles[:-1]:
        programs = -(-rows // tile.rows) * (out // tile.columns)
        enough = programs >= tile.least * card.multiprocessors
        if enough and width % tile.columns == 0 and crowd <= tile.most:
            return tile
    return tiles[-1]
