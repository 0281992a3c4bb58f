"""What one of PEFT's methods is, to this server: its tensors, its config's fields and its formulas.

A method is one file beside this one and one line in table.py. Knows no method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.adapters.methods.layer import Layer, Shared
from app.adapters.recipe import Recipe
from app.adapters.values import Dense, LoRALayer, Rows, Scaling

Fold = Callable[[Layer, Recipe, Shared], tuple[LoRALayer | Dense, Scaling | None]]
FoldRows = Callable[[Layer, Recipe], tuple[Rows, Scaling | None]]


@dataclass(frozen=True, eq=False)
class Method:
    """name: PEFT's peft_type. fold, fold_rows: its formula for a Linear, for an embedding.

    linear, embedding, shared: how PEFT spells its tensors behind a Linear's path, behind an
    embedding's, and of no layer -> our name of the part. wrapper: where it keeps whole weights.

    numbers: the config's fields that its formula reads, with PEFT's default, whose type is wanted.
    without_effect: its fields that change nothing once it is trained. refused: its fields that are
    not served where they are on, and why. Fields that every method has are in
    config/peft_fields.py.

    alpha: what its config calls alpha. free_scale: whether the query may give the scale. patterns:
    whether it reads rank_pattern and alpha_pattern. least_rank: the lowest r that its config may
    say. saved_if: the number that says whether the shared tensors are in the file. beside_others:
    whether other methods' adapters may have its tensors as well.

    before: a warning for files of an older PEFT that computed it otherwise. no_longer: names of
    tensors (expressions) that PEFT wrote once and reads no more, and what they are.
    """

    name: str
    fold: Fold | None = None
    fold_rows: FoldRows | None = None
    linear: Mapping[str, str] = field(default_factory=dict)
    embedding: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    wrapper: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    without_effect: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    alpha: str = "lora_alpha"
    free_scale: bool = False
    patterns: bool = True
    least_rank: int = 0
    saved_if: str | None = None
    beside_others: bool = False
    before: str | None = None
    no_longer: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> frozenset[str]:
        """Our names of what it trains in a layer."""
        return frozenset([*self.linear.values(), *self.embedding.values()])


def themselves(*names: str) -> dict[str, str]:
    """Tensors that we call as PEFT does."""
    return {name: name for name in names}
