"""Trainable tokens: some rows of an embedding, trained by themselves or beside LoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from app.adapters.methods.layer import Layer, to_float
from app.adapters.methods.method import Method
from app.adapters.methods.whole import whole_table
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Rows


def fold_tokens(layer: Layer, recipe: Recipe) -> tuple[Rows, None]:
    """Trained rows [n, dim] in the place of the base's, by the config's token ids.

    Raises Misfit. Source: peft.tuners.trainable_tokens.layer.TrainableTokensLayer.
    """
    num, dim = layer.weight.shape
    ids = _token_ids(layer.path, recipe)
    rows = layer.part("tokens", len(ids), dim)
    if len(set(ids)) != len(ids) or not all(0 <= i < num for i in ids):
        reason = f"the config's token ids are not {len(ids)} different ones below {num}"
        raise Misfit(reason, "tokens")
    slot = torch.full((num,), -1, dtype=torch.long)
    slot[list(ids)] = torch.arange(len(ids))
    return Rows(whole_table(layer), slot=slot, rows=to_float(rows)), None


def _token_ids(path: str, recipe: Recipe) -> tuple[int, ...]:
    """The embedding's ids, in the order of its rows. Raises Misfit."""
    if recipe.tokens is None:
        raise Misfit("the config does not say which tokens' rows these are", "tokens")
    if not isinstance(recipe.tokens, Mapping):
        return recipe.tokens
    for name, ids in recipe.tokens.items():
        if path.endswith(name):
            return ids
    raise Misfit("the config names no token ids for this embedding", "tokens")


TRAINABLE_TOKENS = Method(
    "TRAINABLE_TOKENS",
    fold_rows=fold_tokens,
    embedding={
        "trainable_tokens_delta": "tokens",
        "token_adapter.trainable_tokens_delta": "tokens",
    },
    without_effect=frozenset({"token_indices"}),
    beside_others=True,  # as LoRA's trainable_token_indices
)
