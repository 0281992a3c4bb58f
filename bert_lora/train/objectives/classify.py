"""One label a text, or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from bert_lora.train import first_head
from bert_lora.train.adapted import SEQUENCE
from bert_lora.train.examples import Example
from bert_lora.train.objectives.objective import Floats, Objective, Score, f1, interval, share
from bert_lora.train.student import Item


class Classify(Objective):
    """Cross-entropy; accuracy, and F1 as the mean over the labels. A prediction: [L]."""

    kind = SEQUENCE

    def _gold(self, examples: Sequence[Example]) -> Tensor:
        return torch.tensor([self.index[str(e.gold)] for e in examples])

    @override
    def first_head(
        self, read: Tensor, examples: Sequence[Example], items: Sequence[Item]
    ) -> tuple[Tensor, Tensor] | None:
        return first_head.of_classes(read, self._gold(examples), len(self.labels))

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        return F.cross_entropy(output.logits, self._gold(examples).to(output.logits.device))

    @override
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        return list(output.logits.softmax(-1).cpu().numpy())

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        gold = self._gold(examples).numpy()
        said = np.array([p.argmax() for p in predictions])
        right = (gold == said).astype(float)
        return [
            share("accuracy", right),
            interval("macro F1", len(gold), lambda i: self._macro(gold[i], said[i])),
        ]

    def _macro(self, gold: Any, said: Any) -> float:
        count = len(self.labels)
        right: Floats = np.bincount(gold[gold == said], minlength=count).astype(float)
        true, told = np.bincount(gold, minlength=count), np.bincount(said, minlength=count)
        there = (true + told) > 0
        return float(f1(right, told.astype(float), true.astype(float))[there].mean())

    @override
    def finish(self, head: nn.Linear) -> None:
        first_head.centre(head)

    @override
    def label_of(self, prediction: Any) -> str:
        return self.labels[int(prediction.argmax())]
