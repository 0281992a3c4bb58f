"""Any number of labels a text; and the one label of a reranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from bert_lora.train import first_head
from bert_lora.train.adapted import SEVERAL
from bert_lora.train.examples import Example, labels_of
from bert_lora.train.objectives.objective import Floats, Objective, Score, f1, interval, share
from bert_lora.train.student import Item

THRESHOLD = 0.5


class Several(Objective):
    """A sigmoid for each label; F1 over all labels together, and all of a text's labels right.

    A prediction: [L], between 0 and 1.
    """

    kind = SEVERAL

    def _gold(self, examples: Sequence[Example]) -> Tensor:
        """[N, L]."""
        rows = torch.zeros(len(examples), len(self.labels))
        for row, e in enumerate(examples):
            for label in labels_of(e):
                if label in self.index:
                    rows[row, self.index[label]] = 1
        return rows

    @override
    def first_head(
        self, read: Tensor, examples: Sequence[Example], items: Sequence[Item]
    ) -> tuple[Tensor, Tensor] | None:
        return first_head.of_several(read, self._gold(examples))

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        gold = self._gold(examples).to(output.logits.device)
        return F.binary_cross_entropy_with_logits(output.logits, gold)

    @override
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        return list(output.logits.sigmoid().cpu().numpy())

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        gold = self._gold(examples).numpy() > 0
        said = np.array(predictions) > THRESHOLD
        same = (gold == said).all(1).astype(float)

        def micro(i: Any) -> float:
            counts = [(gold[i] & said[i]).sum(), said[i].sum(), gold[i].sum()]
            return float(f1(*(np.array([c], dtype=float) for c in counts))[0])

        return [
            interval("micro F1", len(gold), micro),
            share("all labels right", same),
        ]

    @override
    def label_of(self, prediction: Any) -> str:
        return ", ".join(n for n, p in zip(self.labels, prediction, strict=True) if p > THRESHOLD)


class Rerank(Several):
    """Whether the second text answers the first. The chance that a pair that does scores above one
    that does not (the area under the ROC curve), and how many are on the right side of a half.
    """

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        gold = self._gold(examples).numpy()[:, 0] > 0
        said: Floats = np.array(predictions, dtype=float)[:, 0]
        right = ((said > THRESHOLD) == gold).astype(float)
        return [
            interval("ROC AUC", len(gold), lambda i: _area(gold[i], said[i])),
            share("accuracy", right),
        ]

    @override
    def label_of(self, prediction: Any) -> str:
        return self.labels[0] if prediction[0] > THRESHOLD else "other"


def _area(gold: Any, said: Floats) -> float:
    """By ranks (Mann and Whitney); equal scores count half. 0.5 where one side is missing."""
    _, place, count = np.unique(said, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    yes, no = int(gold.sum()), int((~gold).sum())
    if not yes or not no:
        return 0.5
    return float((ranks[gold].sum() - yes * (yes + 1) / 2) / (yes * no))
