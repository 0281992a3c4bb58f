"""What an adapter has to fit: the base's layers and widths, without the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BaseShape:
    """What an adapter has to fit. linears: module path -> (out, in); biased: those with a bias.

    prefix: what a model with a head puts before the paths, as in "bert.".
    """

    model_type: str
    prefix: str
    hidden: int
    layers: int
    linears: Mapping[str, tuple[int, int]]
    biased: Collection[str]
    has_pooler: bool

    def resolve(self, path: str) -> str | None:
        """The base's own path of a module, which a model with a head spells with a prefix."""
        bare = path.removeprefix(f"{self.prefix}.")
        return next((p for p in (path, bare) if p in self.linears), None)
