"""One forward pass that is over, for who counts them. Knows sequences and seconds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from app.model.delta import BASE_LAYERS
from app.model.sequence import Sequence


@dataclass(frozen=True, eq=False)
class Forward:
    """batch: the sequences that it answered. distinct: those that it computed; equal ones are once.

    budget: tokens that a batch may have. seconds: from its begin to its end, with what went ahead
    of it between two layers.
    """

    batch: Collection[Sequence]
    distinct: Collection[Sequence]
    budget: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Of all that it answered."""
        return sum(len(sequence.ids) for sequence in self.batch)

    @property
    def adapters(self) -> int:
        """How many versions took part, the base aside."""
        versions = {s.version.digest for s in self.distinct if s.layers is not BASE_LAYERS}
        return len(versions)
