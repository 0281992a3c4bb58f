"""Token logits -> labelled groups of words with their places in the text.

The grouping is transformers' own (TokenClassificationPipeline), given our logits in place of its
model's: simple, first, average and max mean what they mean there. Knows no HTTP.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from app.engine.tokenizer import TextTokenizer, Tokens

Strategy = Literal["none", "simple", "first", "average", "max"]
NOTHING = "O"  # the label of what is no entity, left out as in transformers' pipeline
# Once per process, for tokenizers that do not mark a word's later pieces: grouping goes by spaces.
warnings.filterwarnings("ignore", message="Tokenizer does not support real words")


def prepare(tokenizer: TextTokenizer) -> None:
    """What the first call of word_groups would wait for: seconds of imports. Blocks."""
    _library()
    _ = tokenizer.fast


def _library() -> Any:
    from transformers.pipelines import token_classification

    return token_classification


def _grouping(tokenizer: TextTokenizer, labels: Sequence[str]) -> Any:
    """The pipeline's grouping alone: no model, no framework."""
    grouping = object.__new__(_library().TokenClassificationPipeline)
    grouping.tokenizer = tokenizer.fast
    config = SimpleNamespace(id2label=dict(enumerate(labels)))
    grouping.model = SimpleNamespace(config=config)
    return grouping


def word_groups(
    tokenizer: TextTokenizer,
    text: str,
    tokens: Tokens,
    scores: Tensor,
    labels: Sequence[str],
    strategy: Strategy,
) -> list[dict[str, Any]]:
    """[{"entity_group", "score", "word", "start", "end"}], in the text's order.

    scores [n, L]: one row per token, special ones included. start, end: characters of the text.
    strategy "none": one entry per token, {"entity", "score", "index", "word", "start", "end"}.
    """
    if tokens.places is None:  # pragma: no cover - the door refuses these
        raise ValueError("words are asked of an input that is no single text")
    grouping = _grouping(tokenizer, labels)
    how = _library().AggregationStrategy(strategy)
    pieces = grouping.gather_pre_entities(
        text,
        np.array(tokens.ids),
        scores.numpy(),
        [place or (0, 0) for place in tokens.places],
        np.array([place is None for place in tokens.places]),
        how,
    )
    groups = grouping.aggregate(pieces, how)
    return [
        {**entity, "score": float(entity["score"])}
        for entity in groups
        if NOTHING not in (entity.get("entity"), entity.get("entity_group"))
    ]
