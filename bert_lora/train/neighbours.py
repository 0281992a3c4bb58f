"""What the nearest texts say: whether an adapter's vectors bring texts of one label together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_lora.train import batches
from bert_lora.train.loop import Part
from bert_lora.train.student import Student

NEIGHBOURS = 10
MOST_KNOWN, MOST_ASKED = 4000, 1000  # examples: a picture needs no more


def neighbours(student: Student, known: Part, asked: Part) -> tuple[float, float]:
    """(share of the asked examples whose 10 nearest known ones have mostly its label, by the
    adapter's vectors; by the base's own). Vectors are means of the last states.
    """
    own = _share(student, known, asked)
    with student.model.disable_adapter():
        return own, _share(student, known, asked)


def _share(student: Student, known: Part, asked: Part) -> float:
    near, near_labels = _vectors(student, known, MOST_KNOWN)
    far, labels = _vectors(student, asked, MOST_ASKED)
    nearest = (far @ near.T).topk(min(NEIGHBOURS, len(near))).indices.tolist()
    said = [Counter(near_labels[i] for i in row).most_common(1)[0][0] for row in nearest]
    return float(np.mean([a == b for a, b in zip(said, labels, strict=True)]))


@torch.inference_mode()
def _vectors(student: Student, part: Part, most: int) -> tuple[Tensor, list[str]]:
    places = np.linspace(0, len(part.examples) - 1, min(most, len(part.examples))).astype(int)
    every = part.lengths
    lengths = [every[i] for i in places]
    vectors: list[Tensor] = [torch.empty(0)] * len(places)
    for batch in batches.by_length(lengths, 64):
        _, items, keys = part.chosen([int(places[i]) for i in batch])
        states = student.states(items, keys)
        for row, i in enumerate(batch):
            vectors[i] = F.normalize(states[row, : len(items[row].ids)].mean(0), dim=0).cpu()
    return torch.stack(vectors), _labels(part, places.tolist())


def _labels(part: Part, places: Sequence[int]) -> list[str]:
    return [str(part.examples[i].gold) for i in places]
