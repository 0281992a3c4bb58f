"""The training itself: epochs over batches, until the held-back examples get no better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

from bert_lora.train import batches
from bert_lora.train.checkpoint import Checkpoint, Progress
from bert_lora.train.examples import Example
from bert_lora.train.objectives.objective import Objective, Score
from bert_lora.train.student import Item, Student

WARM_UP = 0.05  # of all steps
WEIGHT_DECAY = 0.01
MOST_GRADIENT = 1.0
MEASURED_AT_ONCE = 64


@dataclass(frozen=True)
class Schedule:
    """epochs: at most. patience: epochs without a better score, after which it stops. batch:
    examples a step; None: as the task has it.
    """

    epochs: int = 3
    lr: float = 1e-3
    batch: int | None = None
    patience: int = 2
    seed: int = 0


class Watcher(Protocol):
    """Who is told how far it is."""

    def begins(self, what: str, total: int) -> None:
        """A stage of total steps."""

    def advances(self, steps: int) -> None:
        """Some of them are done."""

    def says(self, words: str) -> None:
        """A line that stays."""


@dataclass(frozen=True)
class Part:
    """Examples with their inputs. offset: the first item's place in what is remembered."""

    examples: Sequence[Example]
    items: Sequence[Sequence[Item]]
    offset: int

    @property
    def lengths(self) -> list[int]:
        """In tokens, of each example's longest input."""
        return [max(len(item.ids) for item in items) for items in self.items]

    def chosen(self, places: Sequence[int]) -> tuple[list[Example], list[Item], list[int]]:
        """(examples, their items one after another, the items' keys)."""
        width = len(self.items[0])
        items = [item for i in places for item in self.items[i]]
        keys = [self.offset + i * width + k for i in places for k in range(width)]
        return [self.examples[i] for i in places], items, keys


def train(
    student: Student,
    objective: Objective,
    parts: tuple[Part, Part],
    schedule: Schedule,
    checkpoint: Checkpoint,
    watcher: Watcher,
) -> Progress:
    """Train on the first part, measured on the second after each epoch; the best state is set.

    Raises FloatingPointError where the loss is no longer a number.
    """
    train_part, dev = parts
    size = schedule.batch or objective.batch
    steps = len(batches.shuffled(train_part.lengths, size, 0))
    optimizer = AdamW(student.trained.values(), lr=schedule.lr, weight_decay=WEIGHT_DECAY)
    total = steps * schedule.epochs
    rate = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        optimizer, round(WARM_UP * total), total
    )
    progress = _resumed(student, optimizer, rate, checkpoint.load())
    if progress.epoch or progress.batch:
        watcher.says(f"goes on where it stood, in epoch {progress.epoch + 1}")
    watcher.begins("training", total)
    watcher.advances(progress.epoch * steps + progress.batch)
    while progress.epoch < schedule.epochs:
        for batch in _left(train_part, size, schedule.seed, progress):
            loss = _step(student, objective, train_part.chosen(batch), optimizer, rate)
            progress.batch += 1
            progress.loss += loss
            watcher.advances(1)
            if checkpoint.due():
                _keep(checkpoint, progress, student, optimizer, rate)
        score = measure(student, objective, dev)[0][0]
        progress.history.append({"loss": progress.loss / steps, score.name: score.value})
        watcher.says(f"epoch {progress.epoch + 1}: {score}")
        if score.value > progress.best_score:
            progress.best, progress.best_score = student.state(), score.value
            progress.best_epoch = progress.epoch
        progress.epoch, progress.batch, progress.loss = progress.epoch + 1, 0, 0.0
        _keep(checkpoint, progress, student, optimizer, rate)
        if progress.epoch - 1 - progress.best_epoch >= schedule.patience:
            break
    assert progress.best is not None
    student.restore(progress.best)
    return progress


@torch.inference_mode()
def measure(student: Student, objective: Objective, part: Part) -> tuple[list[Score], list[Any]]:
    """(scores, a prediction for each example)."""
    predictions: list[Any] = [None] * len(part.examples)
    for batch in batches.by_length(part.lengths, MEASURED_AT_ONCE):
        examples, items, keys = part.chosen(batch)
        said = objective.predict(student.outputs(items, keys), examples, items)
        for place, prediction in zip(batch, said, strict=True):
            predictions[place] = prediction
    return objective.scores(predictions, part.examples), predictions


def _left(part: Part, size: int, seed: int, progress: Progress) -> Iterator[list[int]]:
    """The epoch's batches that are still to come."""
    every = batches.shuffled(part.lengths, size, 1000 * seed + progress.epoch)
    yield from every[progress.batch :]


def _step(
    student: Student,
    objective: Objective,
    chosen: tuple[list[Example], list[Item], list[int]],
    optimizer: AdamW,
    rate: LRScheduler,
) -> float:
    examples, items, keys = chosen
    loss: Tensor = objective.loss(student.outputs(items, keys), examples, items)
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError("the loss is no longer a number: try a smaller --lr")
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(student.trained.values(), MOST_GRADIENT)
    optimizer.step()
    rate.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _keep(
    checkpoint: Checkpoint,
    progress: Progress,
    student: Student,
    optimizer: AdamW,
    rate: LRScheduler,
) -> None:
    progress.state = student.state()
    progress.optimizer, progress.schedule = optimizer.state_dict(), rate.state_dict()
    checkpoint.keep(progress)


def _resumed(
    student: Student, optimizer: AdamW, rate: LRScheduler, kept: Progress | None
) -> Progress:
    if kept is None or kept.state is None or kept.optimizer is None or kept.schedule is None:
        return Progress()
    student.restore(kept.state)
    optimizer.load_state_dict(kept.optimizer)
    rate.load_state_dict(kept.schedule)
    return kept
