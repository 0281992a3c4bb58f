"""Scores and first heads against scikit-learn, scipy and, for spans, the CoNLL's own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import f1_score, r2_score, roc_auc_score

from bert_lora.train import first_head
from bert_lora.train.examples import Example
from bert_lora.train.objectives.amounts import Amounts
from bert_lora.train.objectives.classify import Classify
from bert_lora.train.objectives.objective import interval, share
from bert_lora.train.objectives.several import Rerank, Several
from bert_lora.train.objectives.vectors import LabelledVectors, Vectors
from bert_lora.train.objectives.words import Words, spans

RNG = np.random.default_rng(0)
LABELS = ["a", "b", "c"]


def _examples(golds: list[Any]) -> list[Example]:
    return [Example(i, ("text",), gold) for i, gold in enumerate(golds)]


def _by_name(scores: list[Any]) -> dict[str, float]:
    return {score.name: score.value for score in scores}


def test_one_label_is_scored_as_scikit_learn_scores_it() -> None:
    gold = RNG.integers(0, 3, 200)
    said = np.where(RNG.random(200) < 0.7, gold, RNG.integers(0, 3, 200))
    predictions = list(np.eye(3)[said])
    scores = _by_name(Classify(LABELS).scores(predictions, _examples([LABELS[g] for g in gold])))
    assert scores["accuracy"] == pytest.approx((gold == said).mean())
    assert scores["macro F1"] == pytest.approx(f1_score(gold, said, average="macro"))


def test_several_labels_are_scored_as_scikit_learn_scores_them() -> None:
    gold, said = RNG.random((200, 3)) > 0.6, RNG.random((200, 3))
    golds = [tuple(np.array(LABELS)[row]) for row in gold]
    scores = _by_name(Several(LABELS).scores(list(said), _examples(golds)))
    assert scores["micro F1"] == pytest.approx(f1_score(gold, said > 0.5, average="micro"))
    assert scores["all labels right"] == pytest.approx((gold == (said > 0.5)).all(1).mean())


def test_a_reranker_is_scored_by_the_area_under_its_curve() -> None:
    gold, said = RNG.random(200) > 0.5, np.round(RNG.random((200, 1)), 1)  # with ties
    golds = ["relevant" if g else "other" for g in gold]
    scores = _by_name(Rerank(["relevant"]).scores(list(said), _examples(golds)))
    assert scores["ROC AUC"] == pytest.approx(roc_auc_score(gold, said[:, 0]))


def test_amounts_are_scored_by_how_near_they_are_and_by_their_ranks() -> None:
    gold = np.round(RNG.random(200) * 5, 1)  # with ties
    said = gold + RNG.normal(size=200)
    scores = _by_name(
        Amounts("score", gold.tolist()).scores(said.tolist(), _examples(gold.tolist()))
    )
    assert scores["R2"] == pytest.approx(r2_score(gold, said))
    assert scores["Spearman"] == pytest.approx(spearmanr(gold, said).statistic)
    assert scores["mean error"] == pytest.approx(np.abs(gold - said).mean())


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", {(1, 3, "PER")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-LOC", {(0, 1, "PER"), (1, 2, "LOC")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        ("O O", set()),
        ("B-ORG I-ORG", {(0, 2, "ORG")}),
        ("S-LOC B-LOC E-LOC", {(0, 1, "LOC"), (1, 3, "LOC")}),
    ],
)
def test_spans_are_read_as_conlleval_reads_them(tags: str, found: set[Any]) -> None:
    assert spans(tags.split()) == found


def test_a_span_counts_only_whole() -> None:
    golds = [("B-X", "I-X", "O"), ("O", "B-X", "O")]
    said = [["B-X", "O", "O"], ["O", "B-X", "O"]]
    scores = _by_name(Words(["O", "B-X", "I-X"]).scores(said, _examples(golds)))
    assert scores == {"span F1": 0.5, "tag accuracy": pytest.approx(5 / 6)}


def test_vectors_are_scored_by_the_place_of_ones_own() -> None:
    pairs = [np.array([[1.0, 0], [0.6, 0.8]]), np.array([[0.0, 1], [0.8, 0.6]])]
    scores = _by_name(Vectors("mean").scores(pairs, _examples([None, None])))
    assert scores == {"reciprocal rank": 0.5, "its own is nearest": 0.0}


def test_neighbours_of_ones_own_label_are_right() -> None:
    vectors = [np.array([[1.0, 0.01 * i]]) for i in range(12)]
    vectors += [np.array([[0.01 * i, 1.0]]) for i in range(12)]
    examples = _examples(["a"] * 12 + ["b"] * 12)
    score = LabelledVectors("mean", ["a", "b"]).scores(vectors, examples)[0]
    assert score.value == 1.0


@pytest.mark.slow
def test_an_interval_holds_the_true_figure_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(150) < 0.8
        score = interval("", 150, lambda i, right=right: float(right[i].mean()), seed)
        inside += score.low <= 0.8 <= score.high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_first_head_of_classes_decides_as_scikit_learns_discriminant() -> None:
    centres = RNG.normal(size=(3, 8)) * 2
    classes = RNG.integers(0, 3, 600)
    rows = centres[classes] + RNG.normal(size=(600, 8)) @ RNG.normal(size=(8, 8)) * 0.5
    weight, bias = first_head.of_classes(
        torch.tensor(rows, dtype=torch.float32), torch.tensor(classes), 3
    )
    own = (torch.tensor(rows, dtype=torch.float32) @ weight.T + bias).argmax(-1).numpy()
    theirs = LinearDiscriminantAnalysis().fit(rows, classes).predict(rows)
    assert (own == theirs).mean() > 0.98


def test_a_first_head_that_reads_nothing_of_use_says_how_often_each_class_is() -> None:
    rows = torch.tensor(RNG.normal(size=(2000, 8)), dtype=torch.float32)
    classes = torch.tensor(RNG.random(2000) < 0.1).long()
    weight, bias = first_head.of_classes(rows, classes, 2)
    said = (rows @ weight.T + bias).softmax(-1).mean(0)
    assert said[1].item() == pytest.approx(classes.float().mean().item(), abs=0.03)


def test_the_first_head_of_amounts_is_near_least_squares() -> None:
    rows = RNG.normal(size=(500, 6))
    true = RNG.normal(size=6)
    amounts = rows @ true + 3 + 0.1 * RNG.normal(size=500)
    weight, bias = first_head.of_amounts(
        torch.tensor(rows, dtype=torch.float32), torch.tensor(amounts, dtype=torch.float32)
    )
    assert np.corrcoef(rows @ weight[0].numpy() + bias.item(), amounts)[0, 1] > 0.99
    assert bias.item() == pytest.approx(3, abs=0.1)


def test_a_head_of_few_rows_is_no_surer_than_rows_that_it_has_not_seen_allow() -> None:
    rng = torch.Generator().manual_seed(0)
    read, fresh = torch.randn(60, 384, generator=rng), torch.randn(200, 384, generator=rng)
    weight, bias = first_head.of_classes(read, torch.arange(60) % 3, 3)  # labels of chance
    surest = (fresh @ weight.T + bias).softmax(1).max(1).values
    assert float(surest.mean()) < 0.5


def test_a_head_of_many_rows_that_lie_apart_is_sure() -> None:
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(600) % 3
    read = torch.randn(600, 16, generator=rng) + 4 * torch.nn.functional.one_hot(classes, 16)
    weight, bias = first_head.of_classes(read, classes, 3)
    surest = (read @ weight.T + bias).softmax(1).max(1).values
    assert float(surest.mean()) > 0.9


def test_a_share_of_few_has_a_wide_interval_even_where_all_are_right() -> None:
    score = share("accuracy", np.ones(3))
    assert (score.value, score.high) == (1, 1)
    assert score.low == pytest.approx(0.438, abs=1e-3)  # Wilson 1927, by statsmodels


@torch.no_grad()
def test_a_centred_head_says_the_same_without_what_all_its_logits_have_in_common() -> None:
    head = torch.nn.Linear(8, 3)
    head.weight.add_(50)
    head.bias.add_(500)
    rows = torch.rand(20, 8)
    before = head(rows).double().softmax(1)
    first_head.centre(head)
    assert torch.allclose(head(rows).double().softmax(1), before, atol=1e-3)
    assert float(head(rows).abs().max()) < 10
