"""A tag for each word: named entities and their like, in BIO."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bert_lora.train import first_head
from bert_lora.train.adapted import TOKENS
from bert_lora.train.examples import Example, labels_of
from bert_lora.train.objectives.objective import Objective, Score, f1, interval
from bert_lora.train.student import Item

Span = tuple[int, int, str]


class Words(Objective):
    """Cross-entropy of each word's first token; F1 of whole spans, and accuracy of the tags.

    A prediction: the words' tags; "O" for a word beyond the longest input.
    """

    kind = TOKENS

    @override
    def items(
        self, tokenizer: PreTrainedTokenizerBase, example: Example, longest: int
    ) -> list[Item]:
        encoded = tokenizer(
            list(example.texts), is_split_into_words=True, truncation=True, max_length=longest
        )
        words = encoded.word_ids()
        firsts = [
            place
            for place, word in enumerate(words)
            if word is not None and word != words[place - 1]
        ]
        numbers = tuple(words[place] for place in firsts)
        return [Item(encoded["input_ids"], firsts=tuple(firsts), words=numbers)]

    def _gold(self, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        """The tags of all words that are read, one after another."""
        return torch.tensor(
            [
                self.index[labels_of(e)[word]]
                for e, item in zip(examples, items, strict=True)
                for word in item.words
            ]
        )

    @override
    def first_head(
        self, read: Tensor, examples: Sequence[Example], items: Sequence[Item]
    ) -> tuple[Tensor, Tensor] | None:
        starts = accumulate((len(item.ids) for item in items), initial=0)
        rows = [start + p for start, item in zip(starts, items, strict=False) for p in item.firsts]
        return first_head.of_classes(read[rows], self._gold(examples, items), len(self.labels))

    @override
    def loss(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> Tensor:
        logits = torch.cat([output.logits[row, list(i.firsts)] for row, i in enumerate(items)])
        return F.cross_entropy(logits, self._gold(examples, items).to(logits.device))

    @override
    def predict(self, output: Any, examples: Sequence[Example], items: Sequence[Item]) -> list[Any]:
        said = output.logits.argmax(-1).cpu().tolist()
        predictions = []
        for row, (example, item) in enumerate(zip(examples, items, strict=True)):
            tags = ["O"] * len(example.texts)
            for place, word in zip(item.firsts, item.words, strict=True):
                tags[word] = self.labels[said[row][place]]
            predictions.append(tags)
        return predictions

    @override
    def scores(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[Score]:
        counts = np.zeros((len(examples), 5))  # spans right, said, there; tags right, there
        for row, (said, e) in enumerate(zip(predictions, examples, strict=True)):
            own, there = spans(said), spans(labels_of(e))
            same = sum(a == b for a, b in zip(said, labels_of(e), strict=True))
            counts[row] = len(own & there), len(own), len(there), same, len(said)

        def span_f1(i: Any) -> float:
            right, own, there = counts[i, :3].sum(0)
            return float(f1(np.array([right]), np.array([own]), np.array([there]))[0])

        return [
            interval("span F1", len(examples), span_f1),
            interval(
                "tag accuracy",
                len(examples),
                lambda i: float(counts[i, 3].sum() / counts[i, 4].sum()),
            ),
        ]

    @override
    def finish(self, head: nn.Linear) -> None:
        first_head.centre(head)

    @override
    def label_of(self, prediction: Any) -> str:
        return " ".join(prediction)


def spans(tags: Sequence[str]) -> set[Span]:
    """(first word, word after the last, kind) of each span, as conlleval reads BIO: an I- without
    its like before it begins one.
    """
    found: set[Span] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, own = tag.partition("-")
        goes_on = mark in ("I", "E", "L") and own == kind and bool(kind)
        if not goes_on:
            if kind:
                found.add((start, place, kind))
            start, kind = place, own if mark != "O" else ""
    return found
