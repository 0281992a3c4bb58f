"""What every kind of task says of itself: its head, its loss, its scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bert_lora.train.adapted import HeadKind
from bert_lora.train.examples import Example
from bert_lora.train.student import Item

Floats = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 95  # percent


@dataclass(frozen=True)
class Score:
    """A figure over the examples held back, and between what it lies with 95 % confidence."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Objective(ABC):
    """labels: of the head, in its order; none without a head. batch: examples of one step."""

    kind: ClassVar[HeadKind]
    batch: ClassVar[int] = 32

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}

    def items(
        self, tokenizer: PreTrainedTokenizerBase, example: Example, longest: int
    ) -> list[Item]:
        """The example's inputs: a text, or a pair, is one. longest: tokens, special ones too."""
        first, *more = example.texts
        encoded = tokenizer(first, more[0] if more else None, truncation=True, max_length=longest)
        return [Item(encoded["input_ids"], encoded.get("token_type_ids") if more else None)]

    def first_head(
        self, read: Tensor, examples: Sequence[Example], items: Sequence[Item]
    ) -> tuple[Tensor, Tensor] | None:
        """(weight [L, H], bias [L]) to start from; None: at random.

        read: what the head reads, as Student.remember gives it.
        """
        return None

    @abstractmethod
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        """The batch's loss, a scalar. output: transformers' of the examples' items, in order."""

    @abstractmethod
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        """A prediction for each example, as scores() takes it."""

    @abstractmethod
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        """The first is the one that training is stopped by: more is better."""

    def finish(self, head: Any) -> None:  # noqa: B027  # most have nothing to do
        """Called once when training is over, before the adapter is saved."""

    def label_of(self, prediction: Any) -> str:
        """What the prediction says, in words."""
        return str(prediction)


def interval(
    name: str, count: int, measure: Callable[[NDArray[np.int64]], float], seed: int = 0
) -> Score:
    """measure over all examples, and its bootstrap interval (Efron's percentiles).

    measure: is given the places of examples, some of them more than once.
    """
    rng = np.random.default_rng(seed)
    every = np.arange(count)
    tried = [measure(rng.integers(0, count, count)) for _ in range(RESAMPLES if count > 1 else 1)]
    low, high = np.percentile(tried, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    value = float(measure(every))
    if low == high and value in (0.0, 1.0):  # all alike: what a share of as many would leave open
        return share(name, np.full(count, value))
    return Score(name, value, float(low), float(high))


def share(name: str, right: Floats) -> Score:
    """The mean of zeros and ones, and Wilson's interval, which is honest where all are alike."""
    count, value, z = len(right), float(right.mean()), 1.96
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return Score(name, value, max(0.0, middle - half), min(1.0, middle + half))


def f1(right: Floats, said: Floats, true: Floats) -> Floats:
    """Harmonic mean of precision and recall from counts; 0 where there is nothing."""
    total = said + true
    mean: Floats = np.divide(
        2 * right, total, out=np.zeros_like(total, dtype=float), where=total > 0
    )
    return mean


def ranks(values: Floats) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's; 0 where one side never changes."""
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
