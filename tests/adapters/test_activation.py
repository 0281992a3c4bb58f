"""Labels and activations as transformers' pipeline has them, from the same fields."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch.testing import assert_close
from transformers.pipelines.text_classification import TextClassificationPipeline

from app.adapters.config.labels import base_classifier, scores_of
from app.adapters.values import ProblemType
from app.model.head import scores
from tests.oracles import FP32


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("problem", [None, *get_args(ProblemType)])
def test_the_activation_is_the_pipelines(problem: Any, count: int) -> None:
    logits = torch.randn(count, generator=torch.Generator().manual_seed(count))
    config = SimpleNamespace(
        problem_type=problem, num_labels=count, id2label=dict(enumerate("abcde"))
    )
    pipe = TextClassificationPipeline.__new__(TextClassificationPipeline)
    pipe.model = SimpleNamespace(config=config)  # type: ignore[assignment]
    theirs = pipe.postprocess({"logits": logits[None]}, top_k=None, _legacy=False)
    by_label = {entry["label"]: entry["score"] for entry in theirs}
    wanted = torch.tensor([by_label[name] for name in "abcde"[:count]])
    assert_close(scores(logits, scores_of(problem, count)), wanted, **FP32)


@pytest.mark.parametrize(
    ("config", "head", "wanted"),
    [
        ((["BertModel"], {0: "LABEL_0", 1: "LABEL_1"}, None), {}, None),
        ((["BertForMaskedLM"], {0: "a", 1: "b"}, None), {"head.dense.weight": 1}, None),
        ((None, {0: "a", 1: "b"}, None), {"classifier.weight": 1}, (None, ("a", "b"))),
        ((["XModel"], {0: "a"}, None), {"classifier.out_proj.weight": 1}, ("classify", ("a",))),
        ((["BertForTokenClassification"], {0: "O", 1: "B-X"}, None), {}, ("tokens", ("O", "B-X"))),
        ((["BertForSequenceClassification"], {0: "LABEL_0"}, "odd"), {}, ("classify", None)),
        ((["BertForSequenceClassification"], {0: "a", 2: "b"}, None), {}, ("classify", None)),
        ((["BertForSequenceClassification"], {0: "a", 1: "a"}, None), {}, ("classify", None)),
        (([], None, None), {}, None),
    ],
)
def test_a_base_that_is_a_classifier_is_told_by_its_config_or_its_head(
    config: Any, head: Any, wanted: Any
) -> None:
    found = base_classifier(*config, head)
    assert (found and (found.task, found.labels)) == wanted
    assert found is None or found.problem_type is None
