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
    of it between two layers. update_s: of that, the adapters' low-rank updates; 0 on a GPU, which
    computes them later than it is told to.
    """

    batch: Collection[Sequence]
    distinct: Collection[Sequence]
    budget: int
    seconds: float
    update_s: float

    @property
    def tokens(self) -> int:
        """Of all that it answered."""
        return sum(len(sequence.ids) for sequence in self.batch)

    @property
    def adapters(self) -> int:
        """How many versions took part, the base aside."""
        versions = {s.version.digest for s in self.distinct if s.layers is not BASE_LAYERS}
        return len(versions)

    @property
    def padding(self) -> int:
        """Tokens that a padded batch of what it computed would have had beside the real ones."""
        lengths = [len(sequence.ids) for sequence in self.distinct]
        return max(lengths) * len(lengths) - sum(lengths)
