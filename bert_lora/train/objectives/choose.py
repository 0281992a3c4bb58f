"""Which objective a task has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from bert_lora.train.columns import Roles
from bert_lora.train.examples import RELEVANT, Example, count_labels
from bert_lora.train.findings import BadData
from bert_lora.train.objectives.amounts import Amounts
from bert_lora.train.objectives.classify import Classify
from bert_lora.train.objectives.objective import Objective
from bert_lora.train.objectives.several import Rerank, Several
from bert_lora.train.objectives.words import Words


def objective(roles: Roles, examples: Sequence[Example], pooling: str) -> Objective:
    """With its head's labels from the data. Raises BadData where a package is missing."""
    labels = sorted(count_labels(examples))
    match roles.task:
        case "classify":
            return Classify(labels)
        case "multi-label":
            return Several(labels)
        case "regression":
            amounts = [float(e.gold) for e in examples]  # type: ignore[arg-type]
            return Amounts(roles.labels[0], amounts)
        case "rerank":
            return Rerank([RELEVANT])
        case "words":
            return Words(["O", *(label for label in labels if label != "O")])
        case "embeddings" | "similarity":
            try:
                from bert_lora.train.objectives import vectors
            except ImportError:
                raise BadData("vectors need pip install 'bert-lora-server[train]'") from None
            if roles.task == "similarity":
                return vectors.AlikeVectors(pooling)
            labelled = bool(roles.labels)
            return (
                vectors.LabelledVectors(pooling, labels) if labelled else vectors.Vectors(pooling)
            )
        case _:
            assert_never(roles.task)
