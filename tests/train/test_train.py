"""`bert-lora train` from a file to what a server answers, for each kind of task."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from bert_lora.cli import cli
from bert_lora.train.findings import BadData
from bert_lora.train.run import Data, read_data
from tests.live import live_server
from tests.train.conftest import SUBJECTS, labelled, sentence, write_csv

FAST = ["--epochs", "6", "--lr", "0.01"]


def _train(data: Path, base: Path, out: Path, *more: str) -> str:
    done = CliRunner().invoke(
        cli,
        ["train", str(data), "--name", out.name, "--out", str(out), "--model", str(base), *more],
    )
    assert done.exit_code == 0, done.output
    return done.output


def _served(base: Path, folder: Path, store: Path) -> Any:
    return live_server(model=str(base), adapters_dir=folder, store=store)


def _rows(task: str, count: int = 300) -> tuple[list[str], list[list[Any]]]:
    """A file of each task that a subject's word decides."""
    rng, others = random.Random(1), random.Random(2)
    rows: list[list[Any]] = []
    for _ in range(count):
        one, other = rng.choice(SUBJECTS), rng.choice(SUBJECTS)
        text, second = sentence(one, rng), sentence(other, rng)
        both = text + " " + other
        alike = others.random() < 0.4
        pair = sentence(one, others) if alike else second
        rows.append(
            {
                "classify": [text, one],
                "multi-label": [both, "|".join(sorted({one, other}))],
                "regression": [text, SUBJECTS.index(one) * 10 + rng.random()],
                "rerank": [one, second, int(other == "card")],
                "embeddings": [text, sentence(one, rng)],
                "similarity": [text, pair, 5 * (alike or one == other)],
            }[task]
        )
    names = {
        "rerank": ["query", "passage", "relevant"],
        "embeddings": ["anchor", "positive"],
        "similarity": ["sentence1", "sentence2", "score"],
    }
    return names.get(task, ["text", "label"]), rows


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("classify", "accuracy"),
        ("multi-label", "micro F1"),
        ("regression", "R2"),
        ("rerank", "ROC AUC"),
        ("embeddings", "reciprocal rank"),
        ("similarity", "Spearman"),
    ],
)
def test_a_file_becomes_an_adapter_that_has_learned(
    task: str, score: str, tiny: Path, tmp_path: Path
) -> None:
    names, rows = _rows(task)
    data = write_csv(tmp_path / "data.csv", names, rows)
    told = ["--task", task] if task in ("rerank", "multi-label", "similarity") else []
    output = _train(data, tiny, tmp_path / "adapters" / "mine", *FAST, *told)
    line = next(words for words in output.splitlines() if f"held back: {score}" in words)
    untrained = {"embeddings": 0.25}.get(task, 0.75)  # ten others of a subject are as near
    assert float(line.split(score)[1].split("(")[0]) > untrained, output
    assert "5 answers of PEFT's, which this server gives, too" in output
    page = (tmp_path / "adapters" / "mine" / "report.html").read_text()
    assert score in page
    assert ("<svg" in page) == (task == "classify")


def test_what_is_served_says_what_was_measured(tiny: Path, tmp_path: Path) -> None:
    """The figure on the test file is the share that a server gets right over HTTP."""
    train, test = labelled(300), labelled(60, seed=9)
    data = write_csv(tmp_path / "data.csv", ["text", "label"], train)
    held = write_csv(tmp_path / "test.csv", ["text", "label"], test)
    output = _train(data, tiny, tmp_path / "adapters" / "mine", *FAST, "--test", str(held))
    line = next(words for words in output.splitlines() if "test file: accuracy" in words)
    server = _served(tiny, tmp_path / "adapters", tmp_path / "store")
    try:
        body = {"inputs": [text for text, _ in test]}
        answer = server.client.post("/classify?adapter=mine", json=body).json()
        assert server.client.get("/adapters/mine").json()["labels"] == sorted(SUBJECTS)
    finally:
        server.stop()
    said = [max(row, key=lambda entry: entry["score"])["label"] for row in answer]
    share = sum(a == b for a, (_, b) in zip(said, test, strict=True)) / len(test)
    assert line.split("accuracy ")[1].startswith(f"{share:.3f}")


def test_words_are_tagged_as_they_were_taught(tiny: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    lines: list[str] = []
    for _ in range(200):
        words = sentence(rng.choice(SUBJECTS), rng).split()
        lines += [f"{w}\t{'B-' + w if w in SUBJECTS else 'O'}" for w in words] + [""]
    (tmp_path / "data.conll").write_text("\n".join(lines))
    output = _train(tmp_path / "data.conll", tiny, tmp_path / "adapters" / "mine", *FAST)
    line = next(words for words in output.splitlines() if "held back: span F1" in words)
    assert float(line.split("span F1")[1].split("(")[0]) > 0.9
    server = _served(tiny, tmp_path / "adapters", tmp_path / "store")
    try:
        body = {"inputs": "the card is a film"}
        groups = server.client.post("/classify?adapter=mine", json=body).json()
    finally:
        server.stop()
    assert [g["entity_group"] for g in groups] == ["card", "film"]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_very_same_adapter(tiny: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", ["text", "label"], labelled(600))
    _train(data, tiny, tmp_path / "whole", "--epochs", "8")
    command = [sys.executable, "-m", "bert_lora", "train", str(data), "--name", "cut",
               "--out", str(tmp_path / "cut"), "--model", str(tiny), "--epochs", "8"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    kept = tmp_path / ".cut.training"
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert kept.exists()
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    subprocess.run(command, check=True, capture_output=True)
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    resumed = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert all(resumed[name].equal(tensor) for name, tensor in whole.items())
    assert not kept.exists()


def test_it_is_pushed_to_a_server_that_answers_by_it(tiny: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", ["text", "label"], labelled(100))
    server = live_server(model=str(tiny), adapters_dir=tmp_path / "none", store=tmp_path / "store")
    try:
        _train(data, tiny, tmp_path / "mine", "--epochs", "1", "--push", server.url)
        answer = httpx.get(f"{server.url}/adapters/mine").json()
    finally:
        server.stop()
    assert answer["certified"] == 5


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["a", ""], *labelled(20)], "row 2: label is empty"),
        ([[text, "same"] for text, _ in labelled(20)], "one label only"),
    ],
)
def test_bad_data_is_told_before_any_training(rows: list[Any], words: str, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", ["text", "label"], rows)
    done = CliRunner().invoke(
        cli, ["train", str(data), "--name", "x", "--out", str(tmp_path / "x")]
    )
    assert (done.exit_code, words in done.output) == (1, True)
    assert not (tmp_path / "x").exists()


def test_a_tag_that_only_a_held_back_text_has_is_no_fault(tmp_path: Path) -> None:
    lines = [f"a{i} O\nb{i} B-RARE{i}\n" for i in range(30)]
    (tmp_path / "data.conll").write_text("\n".join(lines))
    read = read_data(Data(tmp_path / "data.conll"), seed=0)
    assert (len(read.train), len(read.dev)) == (27, 3)


def test_a_label_that_only_the_test_file_has_is_told(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", ["text", "label"], labelled(60))
    rows = [*labelled(20, seed=7), ("the new one", "unheard")]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], rows)
    with pytest.raises(BadData, match="'unheard'"):
        read_data(Data(data, test=test), seed=0)


def test_rows_of_the_test_file_are_not_trained_on(tiny: Path, tmp_path: Path) -> None:
    rows = labelled(60)
    data = write_csv(tmp_path / "data.csv", ["text", "label"], rows)
    test = write_csv(tmp_path / "test.csv", ["text", "label"], [*rows[:2], *labelled(9, seed=5)])
    output = _train(data, tiny, tmp_path / "x", "--epochs", "1", "--test", str(test))
    assert "left out of the training" in output
    assert "rows 2, 3" in output.replace("\n", " ")


def test_what_lay_in_the_folder_before_is_replaced_with_its_certificate(
    tiny: Path, tmp_path: Path
) -> None:
    for seed in ("0", "1"):
        data = write_csv(tmp_path / "data.csv", ["text", "label"], labelled(60, seed=int(seed)))
        output = _train(data, tiny, tmp_path / "mine", "--epochs", "1", "--seed", seed)
        assert "5 answers of PEFT's" in output


def test_the_card_says_how_it_was_made(tiny: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", ["text", "label"], labelled(60))
    _train(data, tiny, tmp_path / "mine", "--epochs", "1")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "rows trained on" in card
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--dev", "data.csv"], "0 rows are left to train on"),
        (["--out", "data.csv/x"], "no folder that can be written to"),
        (["--push", "nonsense"], "a URL"),
    ],
)
def test_what_cannot_end_well_is_told_before_any_training(
    more: list[str], told: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "data.csv", ["text", "label"], labelled(60))
    command = ["train", "data.csv", "--name", "x", "--model", str(tiny), *more]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code in (1, 2)
    assert told in done.output
    assert "epoch" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_numbers_for_tags_are_refused_and_rare_labels_told(tiny: Path, tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, i % 3]} for i in range(40)]
    (tmp_path / "ner.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = ["--name", "x", "--out", str(tmp_path / "x"), "--model", str(tiny)]
    done = CliRunner().invoke(cli, ["train", str(tmp_path / "ner.jsonl"), *out])
    assert done.exit_code == 1
    assert "write them as O, B-PER" in done.output
    rows = [*labelled(60), ("the money is not here", "N/A")]
    data = write_csv(tmp_path / "data.csv", ["text", "label"], rows)
    done = CliRunner().invoke(cli, ["train", str(data), *out, "--epochs", "1"])
    assert "1 labels have 2 rows or fewer" in done.output
    assert "N/A" in done.output
