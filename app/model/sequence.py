"""One sequence, all the way: the same object from its tokens to its row.

Knows what the model reads and what it gives; knows no texts, clients or threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from app.adapters.sentence import Pooling, Sentence
from app.adapters.values import Head
from app.model.delta import Layers
from app.model.version import Version

Wanted = Literal["embedding", "logits", "states"]


@dataclass(frozen=True)
class Want:
    """What one sequence is to give: a pooled embedding [H or dimensions], its head's logits, or the
    states [n, H] of its n tokens.

    Logits are [L], or [n, L] where the head labels each of n tokens.
    """

    kind: Wanted
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None


def wanted_embedding(sentence: Sentence) -> Want:
    """How an embedding is made where the request says nothing more."""
    return Want(
        "embedding",
        sentence.pooling or "mean",
        sentence.normalize is not False,
        sentence.truncate_dim,
    )


@dataclass(eq=False, slots=True)
class Sequence:
    """Who fills which field:

    Its maker: ids with their special tokens, types (token_type_ids, as many), want, and the version
    that it runs through.
    Engine.run: request (an engine.request.Request, which this layer never reads) and index, its
    place there. So a sequence is in one call at a time.
    The engine, from the model's answer: row, float32 on the CPU, of the shape that Want says.
    """

    ids: list[int]
    types: list[int]
    want: Want
    version: Version
    request: Any = None
    index: int = 0
    row: Tensor | None = None

    @property
    def layers(self) -> Layers:
        """What its version does to the encoder."""
        return self.version.layers

    @property
    def head(self) -> Head | None:
        """Its version's head, which logits come from."""
        return self.version.adapter.head

    @property
    def identity(self) -> Hashable:
        """Alike for sequences of one batch whose rows are alike."""
        return (tuple(self.ids), tuple(self.types), self.want, id(self.version))
