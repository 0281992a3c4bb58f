"""A number for each text or pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from bert_lora.train import first_head
from bert_lora.train.adapted import AMOUNT
from bert_lora.train.examples import Example
from bert_lora.train.objectives.objective import (
    Floats,
    Objective,
    Score,
    correlation,
    interval,
    ranks,
)
from bert_lora.train.student import Item


class Amounts(Objective):
    """Mean squared error of the standardized amount. A prediction: a float in the data's unit.

    Stopped by R2, and not by an order of ranks, which an answer far off may have as well.

    The head learns the standardized amount; finish() makes it give the data's own.
    """

    kind = AMOUNT

    def __init__(self, name: str, amounts: Sequence[float]) -> None:
        super().__init__([name])
        self._mean, self._deviation = float(np.mean(amounts)), float(np.std(amounts)) or 1.0

    def _gold(self, examples: Sequence[Example]) -> Tensor:
        amounts = torch.tensor([float(e.gold) for e in examples])  # type: ignore[arg-type]
        return (amounts - self._mean) / self._deviation

    @override
    def first_head(
        self, read: Tensor, examples: Sequence[Example], items: Sequence[Item]
    ) -> tuple[Tensor, Tensor] | None:
        return first_head.of_amounts(read, self._gold(examples))

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        said = output.logits[:, 0]
        loss: Tensor = (said - self._gold(examples).to(said.device)).square().mean()
        return loss

    @override
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        said = output.logits[:, 0].cpu().double() * self._deviation + self._mean
        return [float(x) for x in said]

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        gold: Floats = np.array([e.gold for e in examples], dtype=float)
        said: Floats = np.array(predictions, dtype=float)
        return [
            interval("R2", len(gold), lambda i: _explained(gold[i], said[i])),
            interval("Spearman", len(gold), lambda i: correlation(ranks(gold[i]), ranks(said[i]))),
            interval("Pearson", len(gold), lambda i: correlation(gold[i], said[i])),
            interval("mean error", len(gold), lambda i: float(np.abs(gold[i] - said[i]).mean())),
        ]

    @override
    @torch.no_grad()
    def finish(self, head: nn.Linear) -> None:
        head.weight.mul_(self._deviation)
        head.bias.mul_(self._deviation).add_(self._mean)
        self._mean, self._deviation = 0.0, 1.0

    @override
    def label_of(self, prediction: Any) -> str:
        return f"{prediction:.3g}"


def _explained(gold: Floats, said: Floats) -> float:
    """The share of the amounts' variance that is told; below 0: worse than their mean."""
    variance = float(((gold - gold.mean()) ** 2).sum())
    return 1 - float(((gold - said) ** 2).sum()) / variance if variance else 0.0
