"""A version's report: the members that HTTP promises, and its way through JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from app.adapters.report import Effect, Report, TensorCounts, report_from_json
from app.adapters.values import Scaling

REPORT = Report(
    version="4f" * 32,
    task="classify",
    labels=("neg", "pos"),
    scores="softmax",
    has_head=True,
    layout="peft",
    kind="LORA",
    rank=8,
    scale=2.0,
    scaling=(Scaling("alpha / r", 2.0, 16.0, 8.0), Scaling("given", 2.0)),
    targets={"query": 6, "value": 6},
    bytes=1000,
    resident_bytes=900,
    tensors=TensorCounts(26, 24, ("bert.pooler.dense.weight", "bert.pooler.dense.bias")),
    delta=Effect(0.25, (0.1, 0.2)),
    pooling="mean",
    normalize=True,
    max_length=256,
    prompts={"query": "query: "},
    dimensions=(128, 256),
    embedding_space="base+version",
    certified=5,
    warnings=("labels come from nowhere",),
)


def test_what_was_stored_is_the_same_report_again() -> None:
    assert report_from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_its_json_has_the_shape_that_clients_know() -> None:
    shown = json.loads(json.dumps(REPORT.to_json()))
    assert list(shown) == [f.name for f in fields(Report)]
    assert shown["scaling"] == [
        {"formula": "alpha / r", "scale": 2.0, "alpha": 16.0, "r": 8.0},
        {"formula": "given", "scale": 2.0},
    ]
    assert shown["tensors"] == {"in_file": 26, "used": 24, "ignored": list(REPORT.tensors.ignored)}
    assert shown["delta"] == {"relative": 0.25, "layers": [0.1, 0.2]}
    assert shown["labels"] == ["neg", "pos"]


def test_the_members_that_the_docs_tell_of_are_there() -> None:
    written = Path("docs/api.md").read_text(encoding="utf-8")
    told = {"scores", "scaling", "warnings", "delta", "embedding_space", "labels", "task"}
    assert told <= REPORT.to_json().keys()
    assert all(f"`{name}" in written for name in told)


@pytest.mark.parametrize(
    "raw", [None, [], {}, {**REPORT.to_json(), "task": "dance"}, {**REPORT.to_json(), "delta": 3}]
)
def test_what_is_no_report_is_none(raw: object) -> None:
    assert report_from_json(raw) is None
