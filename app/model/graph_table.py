"""What differs between two batches of one captured forward: one tensor that never moves.

Knows rows, tiles and addresses; knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from app.model import kernel_cuda
from app.model.batch import Batch, Bucket
from app.model.kernel import FIELDS
from app.model.kernel_cuda import ROWS
from app.model.product_cuda import BLOCK

Stacked = tuple[np.ndarray, np.ndarray]  # see delta.stack


@dataclass(frozen=True, eq=False)
class Table:
    """What differs between two batches of a bucket: views of one int64 tensor, copied at once.

    rows [3, tokens] and ends [sequences + spare + 1]: as batch.Inputs has them. tiles [n, 3],
    entries [linears, sequences + 1, FIELDS], edges [n, 2] and spans [sequences + 1, 2]: as
    kernel_cuda.Plan has them; the last sequence's entries are zeros, which change nothing, and what
    tiles are left over are its own. Edges that are left over have no segment between them.
    """

    flat: Tensor
    rows: Tensor
    ends: Tensor
    tiles: Tensor
    entries: Tensor
    edges: Tensor
    spans: Tensor

    def fill(self, batch: Batch, updates: Stacked | None) -> None:
        """From a batch of this bucket; this table is new, and on the CPU."""
        self.rows.numpy()[:] = batch.numbers
        self.ends.numpy()[:] = batch.ends()
        tiles, entries = self.tiles.numpy(), self.entries.numpy()
        tiles[:, 0] = entries.shape[1] - 1
        if updates is not None:
            rows, table = updates
            entries[:, : len(rows)] = table
            self.edges[:] = len(rows)
            for part, own in (
                (tiles, kernel_cuda.tiles_of(rows)),
                (self.edges.numpy(), kernel_cuda.edges_of(rows)),
                (self.spans.numpy(), rows),
            ):
                part[: len(own)] = own


def table_of(bucket: Bucket, linears: int, device: torch.device, pinned: bool = False) -> Table:
    """Zeros: no sequences and no updates. linears: 0 for a table without updates."""
    shapes = (
        (3, bucket.tokens),
        (bucket.sequences + bucket.spare + 1,),
        (bucket.sequences + bucket.tokens // ROWS, 3),
        (linears, bucket.sequences + 1, FIELDS),
        (-(-bucket.tokens // BLOCK), 2),
        (bucket.sequences + 1, 2),
    )
    sizes = [-(-prod(shape) // 2) * 2 for shape in shapes]  # parts begin at multiples of 16 bytes
    flat = torch.zeros(sum(sizes), dtype=torch.int64, device=device, pin_memory=pinned)
    parts = [
        part[: prod(shape)].view(shape)
        for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)
    ]
    return Table(flat, *parts)
