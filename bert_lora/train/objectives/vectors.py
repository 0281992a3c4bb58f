"""Vectors: texts that belong together come near, by sentence-transformers' losses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import (
    BatchHardSoftMarginTripletLoss as HardTriplets,
)
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bert_lora.train.adapted import NO_HEAD
from bert_lora.train.examples import Example
from bert_lora.train.objectives.objective import (
    Objective,
    Score,
    correlation,
    interval,
    ranks,
    share,
)
from bert_lora.train.student import Item

NEIGHBOURS = 10


class Vectors(Objective):
    """pooling: the base's own, "mean" or "cls". A prediction: the example's vectors, [K, H]."""

    kind = NO_HEAD
    batch = 64  # the others of a batch are what a text is told apart from

    def __init__(self, pooling: str) -> None:
        super().__init__([])
        self._pooling = pooling
        # The loss asks its model for nothing but what it is called with.
        self._ranking = MultipleNegativesRankingLoss(SimpleNamespace())  # type: ignore[arg-type]

    @override
    def items(
        self, tokenizer: PreTrainedTokenizerBase, example: Example, longest: int
    ) -> list[Item]:
        return [
            Item(tokenizer(text, truncation=True, max_length=longest)["input_ids"])
            for text in example.texts
        ]

    def pooled(self, output: Any, items: Sequence[Item]) -> Tensor:
        """[items, H], of length 1."""
        rows = output.last_hidden_state
        if self._pooling == "cls":
            return F.normalize(rows[:, 0], dim=-1)
        lengths = torch.tensor([len(item.ids) for item in items], device=rows.device)
        inside = torch.arange(rows.shape[1], device=rows.device)[None] < lengths[:, None]
        return F.normalize((rows * inside[..., None]).sum(1) / lengths[:, None], dim=-1)

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        vectors = self.pooled(output, items).view(
            len(examples), -1, output.last_hidden_state.shape[-1]
        )
        columns = [vectors[:, k] for k in range(vectors.shape[1])]
        return self._ranking.compute_loss_from_embeddings(columns, None)  # type: ignore[arg-type]

    @override
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        return list(
            self.pooled(output, items)
            .view(len(examples), -1, output.last_hidden_state.shape[-1])
            .cpu()
            .numpy()
        )

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        vectors = np.array(predictions)
        similar = vectors[:, 0] @ vectors[:, 1].T
        own = similar.diagonal()[:, None]
        place = 1 / (1 + (similar > own).sum(1))
        first = (place == 1).astype(float)
        return [
            interval("reciprocal rank", len(place), lambda i: float(place[i].mean())),
            share("its own is nearest", first),
        ]


class AlikeVectors(Vectors):
    """Pairs with a number: the more alike, the larger the cosine (CoSENT). How well the cosines
    keep the numbers' order.
    """

    batch = 32

    def __init__(self, pooling: str) -> None:
        super().__init__(pooling)
        self._order = CoSENTLoss(SimpleNamespace())  # type: ignore[arg-type]

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        rows = self.pooled(output, items)
        amounts = torch.tensor([float(e.gold) for e in examples], device=rows.device)  # type: ignore[arg-type]
        pairs = [rows[0::2], rows[1::2]]
        loss: Tensor = self._order.compute_loss_from_embeddings(pairs, amounts)
        return loss

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        vectors = np.array(predictions)
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(1)
        gold = np.array([e.gold for e in examples], dtype=float)
        return [
            interval(
                "Spearman", len(gold), lambda i: correlation(ranks(gold[i]), ranks(cosines[i]))
            ),
            interval("Pearson", len(gold), lambda i: correlation(gold[i], cosines[i])),
        ]


class LabelledVectors(Vectors):
    """Texts of one label come near: the hardest triplets of a batch. What the 10 nearest others
    say of a text's label.
    """

    def __init__(self, pooling: str, labels: list[str]) -> None:
        super().__init__(pooling)
        self._classes = {label: i for i, label in enumerate(labels)}

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        classes = torch.tensor([self._classes[str(e.gold)] for e in examples])
        vectors = self.pooled(output, items)
        triplets = HardTriplets(SimpleNamespace())  # type: ignore[arg-type]
        return triplets.batch_hard_triplet_soft_margin_loss(classes.to(vectors.device), vectors)

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        vectors = np.array(predictions)[:, 0]
        gold = np.array([self._classes[str(e.gold)] for e in examples])
        similar = vectors @ vectors.T
        np.fill_diagonal(similar, -2)
        nearest = np.argsort(-similar, axis=1)[:, :NEIGHBOURS]
        said = [np.bincount(gold[row]).argmax() for row in nearest]
        right = (gold == said).astype(float)
        name = f"{NEIGHBOURS} nearest neighbours"
        return [share(name, right)]
