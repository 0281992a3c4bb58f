"""What is given whole, or row by row: Linears, LayerNorms, embeddings, token rows; LoRA on embeddings.

One function per form, as in fold.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.adapters.config.recipe import Recipe
from app.adapters.methods.fold import Layer, Misfit, dense, rank_zero, to_float
from app.adapters.values import Dense, LoRALayer, Norm, Rows, Scaling


def fold_embedding(layer: Layer, recipe: Recipe) -> tuple[Rows, Scaling]:
    """LoRA on an embedding: y = g * (table[id] + s A[:, id] B.T).

    embedding_A [r, num], embedding_B [dim, r]; g = 1, or DoRA's m / ||table + s (B A).T|| per column.
    Raises Misfit. Source: peft.tuners.lora.layer.Embedding, lora.dora.DoraEmbeddingLayer.
    """
    num, dim = layer.weight.shape
    A = layer.get("embedding_A", None, num)
    B = layer.get("embedding_B", dim, A.shape[0])
    if not A.shape[0]:
        raise Misfit("has rank 0: there is nothing in it", "embedding_A")
    expected = recipe.expected_rank(layer.path)
    if expected is not None and A.shape[0] != expected:
        raise Misfit(f"has rank {A.shape[0]}, while the config says {expected}", "embedding_A")
    scaling = recipe.scaling(layer.path, A.shape[0])
    B = B * scaling.scale
    table = whole_table(layer)
    gain = None
    if "magnitude" in layer.parts:
        frozen = layer.frozen if table is None else table.double()
        norm = torch.linalg.vector_norm(frozen + (B @ A).T, dim=0)
        gain = layer.get("magnitude", dim) / norm
        B = gain[:, None] * B
    rows = Rows(table, to_float(A.T), to_float(B), None if gain is None else to_float(gain))
    return rows, scaling


def fold_tokens(layer: Layer, recipe: Recipe) -> Rows:
    """Trained rows [n, dim] in the place of the base's, by the config's token ids.

    Raises Misfit. Source: peft.tuners.trainable_tokens.layer.TrainableTokensLayer.
    """
    num, dim = layer.weight.shape
    ids = _token_ids(layer.path, recipe)
    rows = layer.get("tokens", len(ids), dim)
    if len(set(ids)) != len(ids) or not all(0 <= i < num for i in ids):
        raise Misfit(
            f"the config's token ids are not {len(ids)} different ones below {num}", "tokens"
        )
    slot = torch.full((num,), -1, dtype=torch.long)
    slot[list(ids)] = torch.arange(len(ids))
    return Rows(whole_table(layer), slot=slot, rows=to_float(rows))


def whole_table(layer: Layer) -> Tensor | None:
    """An embedding given whole; None where it is missing, or the base's own."""
    if "weight" not in layer.parts:
        return None
    table = to_float(layer.whole("weight", *layer.weight.shape))
    return None if repeats(layer) else table


def whole_norm(layer: Layer) -> Norm:
    """A LayerNorm given whole, or its bias alone (PEFT's bias=all). Raises Misfit."""
    width = layer.weight.shape[0]
    weight = layer.get("weight", width) if "weight" in layer.parts else layer.frozen
    if layer.bias is None:
        if "bias" in layer.parts:
            raise Misfit("has a bias in the file, and this base's has none", "bias")
        return Norm(to_float(weight), None)
    if "weight" in layer.parts and "bias" not in layer.parts:
        raise Misfit("has no bias in the file, and this base's has one", "weight")
    return Norm(to_float(weight), to_float(layer.get("bias", width)))


def whole_linear(layer: Layer) -> LoRALayer | Dense:
    """A Linear given whole (PEFT's modules_to_save), or its bias alone (bias=all). Raises Misfit."""
    if "bias" in layer.parts and layer.bias is None:
        raise Misfit("has a bias in the file, and this base's has none", "bias")
    if "weight" not in layer.parts:
        return rank_zero(layer, None, layer.new_bias)
    if "bias" not in layer.parts and layer.bias is not None:
        raise Misfit("replaces a layer; its bias is missing, and the base's has one", "weight")
    weight = layer.whole("weight", layer.out, layer.in_)
    return dense(layer, weight, layer.new_bias)


def repeats(layer: Layer) -> bool:
    """Whether the file's whole weight is the base's own: a rounded copy is not, and PEFT loads it."""
    return torch.equal(layer.parts["weight"].float(), layer.weight.detach().cpu().float())


def _token_ids(path: str, recipe: Recipe) -> tuple[int, ...]:
    if recipe.tokens is None:
        raise Misfit("the config does not say which tokens' rows these are", "tokens")
    if not isinstance(recipe.tokens, Mapping):
        return recipe.tokens
    found = next(
        (ids for name, ids in recipe.tokens.items() if path.endswith(name)),
        None,
    )
    if found is None:
        raise Misfit("the config names no token ids for this embedding", "tokens")
    return found
