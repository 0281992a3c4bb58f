"""The model's rows back to their sequences: equal sequences share one, NaN is an error.

Knows sequences, rows and requests; knows no queue and no threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from app.engine.failures import not_finite
from app.engine.request import Request
from app.model.sequence import Sequence


def hand_back(
    batch: list[Sequence], row_of: Mapping[Hashable, Tensor], finished_at: float
) -> list[Request]:
    """Give each sequence its row, by identity. Returns the requests that are over with it."""
    # Asked once for all: a row at a time takes longer than a GPU takes for their forward.
    finite = bool(torch.isfinite(torch.cat([row.flatten() for row in row_of.values()])).all())
    return [
        sequence.request
        for sequence in batch
        if _give(sequence, row_of[sequence.identity], finished_at, finite)
    ]


def _give(sequence: Sequence, row: Tensor, finished_at: float, finite: bool) -> bool:
    """finite: whether all rows of the batch are. Returns whether the request is over with it."""
    request: Request = sequence.request
    if not (finite or torch.isfinite(row).all()):
        return request.fail(not_finite(sequence.index))
    sequence.row = row
    return request.finish_one(finished_at)
