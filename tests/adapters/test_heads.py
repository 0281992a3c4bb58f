"""Each architecture's head from the file or the base; what it lacks is named; its labels and
scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from app.adapters.base import Base, Classifier
from app.adapters.config.labels import label, read_labels
from app.adapters.heads import HeadReader
from app.adapters.layouts import read_names
from app.adapters.methods.layer import Layer
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Misfit, Problems
from app.adapters.values import Dense, Head, LoRALayer, Task
from tests.adapters.made import tiny_base

BERT = tiny_base()
ROBERTA = tiny_base(model_type="roberta", prefix="roberta", has_pooler=False)
DISTILBERT = tiny_base(model_type="distilbert", prefix="distilbert", has_pooler=False)
MODERN = tiny_base(model_type="modernbert", prefix="model", has_pooler=False)
CONFIGURED = Recipe(configured=True, alpha=1.0)


def dense(path: str, out: int, in_: int = 32) -> dict[str, Tensor]:
    return {f"{path}.weight": torch.randn(out, in_), f"{path}.bias": torch.randn(out)}


OUT = dense("classifier", 3)
NORM = {"head.norm.weight": torch.ones(32)}


def read(
    tensors: dict[str, Tensor], base: Base, task: Task = "classify", recipe: Recipe = CONFIGURED
) -> tuple[Head | None, list[tuple[str, str | None]]]:
    def fold(layer: Layer) -> LoRALayer | Dense:
        if "A" not in layer.parts:
            raise Misfit("has no partner", "B")
        return LoRALayer(layer.parts["A"], layer.parts["B"])

    problems = Problems()
    reader = HeadReader(read_names(tensors, recipe, base), recipe, base, fold, problems)
    return reader.read(task), [(p.reason, p.tensor) for p in problems]


@pytest.mark.parametrize(
    ("tensors", "base", "task", "source", "activation"),
    [
        (OUT, BERT, "classify", "pooler", None),
        (OUT, BERT, "tokens", "tokens", None),
        (OUT | dense("bert.pooler.dense", 32), replace(BERT, has_pooler=False), "classify", "cls", "tanh"),
        (dense("classifier.dense", 32) | dense("classifier.out_proj", 3), ROBERTA, "classify", "cls", "tanh"),
        (OUT, ROBERTA, "tokens", "tokens", None),
        (OUT | dense("pre_classifier", 32), DISTILBERT, "classify", "cls", "relu"),
        (OUT | dense("head.dense", 32) | NORM, MODERN, "classify", "cls", "gelu"),
        (OUT | dense("head.dense", 32) | NORM, replace(MODERN, classifier_pooling="mean"), "classify", "mean", "gelu"),
        (OUT | dense("head.dense", 32) | NORM, MODERN, "tokens", "tokens", "gelu"),
    ],
)  # fmt: skip
def test_a_head_is_its_architectures(
    tensors: dict[str, Tensor], base: Base, task: Task, source: str, activation: str | None
) -> None:
    head, problems = read(tensors, base, task)
    assert problems == []
    assert head is not None
    assert (head.source, head.activation, head.labels) == (source, activation, 3)
    assert (head.dense is not None) == (activation is not None)
    assert (head.norm is not None) == (base.model_type == "modernbert")


def test_a_task_without_a_head_has_none() -> None:
    assert read(OUT, BERT, "embed") == (None, [])


@pytest.mark.parametrize(
    ("tensors", "base", "told", "tensor"),
    [
        ({}, BERT, "weight is not in the file", "classifier.weight"),
        (OUT, DISTILBERT, "weight is not in the file", "pre_classifier.weight"),
        (OUT, replace(BERT, has_pooler=False), "this base has none", "classifier.weight"),
        (dense("classifier", 3, 48), BERT, "reads 48 values", "classifier.weight"),
        (OUT | {"classifier.weight": torch.ones(3)}, BERT, "no matrix", "classifier.weight"),
        (OUT | {"classifier.bias": torch.ones(4)}, BERT, "do not fit", "classifier.bias"),
        ({"classifier.weight": torch.ones(3, 32)}, BERT, "has no bias", "classifier.weight"),
        (OUT | {"classifier.bias": torch.full((3,), torch.nan)}, BERT, "not finite", "classifier.bias"),
        (OUT | dense("head.dense", 32), MODERN, "head's norm", "head.norm.weight"),
        (OUT | dense("pre_classifier", 16), DISTILBERT, "other layer", "classifier.weight"),
        (OUT | {"classifier.lora_A.weight": torch.ones(2, 32)}, BERT, "also adapts", "classifier.weight"),
    ],
)  # fmt: skip
def test_what_a_head_lacks_is_named(
    tensors: dict[str, Tensor], base: Base, told: str, tensor: str
) -> None:
    head, problems = read(tensors, base)
    assert head is None
    assert [(told in reason, at) for reason, at in problems] == [(True, tensor)]


def test_the_bases_own_head_is_used_and_changed() -> None:
    base = replace(BERT, head=OUT)
    head, problems = read({}, base)
    assert head is not None
    assert problems == []
    assert_close(head.out.weight, OUT["classifier.weight"])
    A, B = torch.randn(2, 32), torch.randn(3, 2)
    pair = {"classifier.lora_A.weight": A, "classifier.lora_B.weight": B}
    changed, _ = read({f"base_model.model.{n}": t for n, t in pair.items()}, base)
    assert changed is not None
    assert_close(changed.out.weight, OUT["classifier.weight"] + B @ A)
    half = {"base_model.model.classifier.lora_B.weight": B}
    assert read(half, base) == (None, [("has no partner", next(iter(half)))])


def labelled(head: Head | None, own: bool = False, base: Base = BERT, **recipe: Any) -> Any:
    return label(head, "classify", Recipe(**recipe), base, own=own)


HEAD = Head("cls", None, None, Dense(torch.ones(2, 4), None))
NAMED = replace(BERT, classifier=Classifier("classify", ("no", "yes"), "regression"))


def test_labels_come_from_the_adapter_then_the_base_then_from_nowhere() -> None:
    assert labelled(None).labels == ()
    assert labelled(HEAD, labels=("a", "b"), base=NAMED).labels == ("a", "b")
    assert labelled(HEAD, own=True, base=NAMED).labels == ("no", "yes")
    assert labelled(HEAD, own=True, base=NAMED).assumed == ()
    theirs, nobodys = labelled(HEAD, base=NAMED), labelled(HEAD)
    assert (theirs.labels, len(theirs.assumed)) == (("no", "yes"), 2)
    assert (nobodys.labels, len(nobodys.assumed)) == (("LABEL_0", "LABEL_1"), 1)


@pytest.mark.parametrize("labels", [("a",), ("a", "a"), ("a", "\ud800"), ("a", "b", "c")])
def test_labels_that_do_not_fit_the_head_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(AdapterRejected):
        labelled(HEAD, labels=labels)


def test_the_scores_follow_the_problem_type() -> None:
    assert labelled(HEAD, own=True, base=NAMED).scores == "none"
    assert labelled(HEAD, problem_type="multi_label_classification").scores == "sigmoid"
    assert labelled(HEAD).scores == "softmax"
    one = replace(HEAD, out=Dense(torch.ones(1, 4), None))
    assert (labelled(one).scores, len(labelled(one).assumed)) == ("sigmoid", 2)


def test_id2label_is_read_in_the_order_of_its_ids() -> None:
    assert read_labels({"1": "b", "0": "a", 2: 3}) == ("a", "b", "3")
    for wrong in ({"0": "a", "2": "b"}, ["a"], {"x": "a"}, "ab", {None: "a"}):
        with pytest.raises(Misfit):
            read_labels(wrong)
