"""One forward under way: its batch, whose rows are whose, and what happens between two products.

Knows segments and updates; knows no modules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.model.batch import Inputs, Segment
from app.model.delta import NO_UPDATES, Members, Updates, add_delta, gather


def _go_on() -> None:
    """Nothing to do between two layers."""


@dataclass(eq=False)
class Pass:
    """One forward: what it reads, and who sits on which rows.

    between: called before every product, and may raise. norms, embeddings: the segments that bring
    their own; own: whether any has Linears of its own. So a layer that nobody changes does not go
    through hundreds of segments. update_s: seconds of its updates so far.
    """

    inputs: Inputs
    segments: Sequence[Segment] = ()
    updates: Updates = NO_UPDATES
    between: Callable[[], None] = _go_on
    norms: Sequence[Segment] = ()
    embeddings: Sequence[Segment] = ()
    own: bool = False
    update_s: float = 0.0

    def update(self, y: Tensor, x: Tensor, members: Members) -> None:
        """As add_delta, and the time that it takes: on a CPU; a GPU computes later."""
        if not self.updates.touch(members):
            return
        started = time.perf_counter()
        add_delta(y, x, self.updates, members)
        if not y.is_cuda:
            self.update_s += time.perf_counter() - started


def pass_of(
    inputs: Inputs,
    segments: Sequence[Segment],
    kernels_on: torch.device | None,
    between: Callable[[], None] = _go_on,
) -> Pass:
    """A forward through these segments' layers. kernels_on: see delta.gather."""
    return Pass(
        inputs,
        segments,
        gather([(s.rows, s.layers) for s in segments], kernels_on),
        between,
        [s for s in segments if s.layers.norms],
        [s for s in segments if s.layers.embeddings],
        any(s.layers.own for s in segments),
    )
