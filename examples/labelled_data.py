"""The labelled data sets the shipped adapters are trained and measured on.

Knows the files' formats and splits; knows nothing of models. Files: see `../shared/data/README.md`
in the project's workshop, or the public sources named in `adapters/*/README.md`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

TRAINED_SENTIMENT_DOMAINS = ("tweets", "movieReview", "nytEditorial")
NEUTRAL = 0.2  # 0.05 of the whole scale: where VADER itself draws the line
UNSEEN_SENTIMENT_DOMAIN = "amazonReview"


@dataclass(frozen=True)
class Example:
    """One row."""

    text: str
    label: str


@dataclass(frozen=True)
class Dataset:
    """dev: empty where the source has no development split of its own."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    labels: list[str]
    licence: str
    source: str


def load(task: str, data: Path) -> Dataset:
    """`task` is one of banking77, clinc150, sentiment; `data` holds a folder for each."""
    return {"banking77": banking77, "clinc150": clinc150, "sentiment": sentiment}[task](data / task)


def banking77(folder: Path) -> Dataset:
    def read(name: str) -> list[Example]:
        with (folder / name).open(newline="", encoding="utf-8") as file:
            return [Example(row["text"], row["category"]) for row in csv.DictReader(file)]

    train, test = read("train.csv"), read("test.csv")
    return Dataset(
        train,
        [],
        test,
        sorted({e.label for e in train}),
        "CC-BY-4.0",
        "PolyAI-LDN/task-specific-datasets, banking_data",
    )


def clinc150(folder: Path) -> Dataset:
    """In-scope part only: 150 intents, 15,000 / 3,000 / 4,500."""
    raw = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    train, dev, test = (
        [Example(text, label) for text, label in raw[s]] for s in ("train", "val", "test")
    )
    return Dataset(
        train,
        dev,
        test,
        sorted({e.label for e in train}),
        "CC-BY-3.0",
        "clinc/oos-eval, data_full.json",
    )


def sentiment(folder: Path) -> Dataset:
    """Sign of the mean human valence (-4..4). What the raters found neutral is left out.

    Trained on three domains; the fourth, Amazon reviews, is never trained on. Every fifth of
    its rows is the development split that chooses epochs, the others are the test.
    """

    def read(domain: str) -> list[Example]:
        name = f"{domain}{'_' if domain == 'tweets' else 'Snippets_'}GroundTruth.txt"
        rows = (folder / name).read_text(encoding="utf-8").splitlines()
        parsed = [row.split("\t", 2) for row in rows if row.count("\t") >= 2]
        return [
            Example(text, "positive" if valence > 0 else "negative")
            for valence, text in ((float(v), text) for _, v, text in parsed)
            if abs(valence) >= NEUTRAL
        ]

    train = [e for domain in TRAINED_SENTIMENT_DOMAINS for e in read(domain)]
    unseen = read(UNSEEN_SENTIMENT_DOMAIN)
    return Dataset(
        train,
        unseen[::5],
        [e for i, e in enumerate(unseen) if i % 5],
        ["negative", "positive"],
        "MIT",
        "vaderSentiment 3.3 sdist, hutto_ICWSM_2014",
    )


def split_of(source: Dataset, label: str) -> str:
    """Of which part an intent is, for a reranker: train, dev or test."""
    place = source.labels.index(label)
    return "test" if place % 5 == 4 else "dev" if place % 10 == 0 else "train"
