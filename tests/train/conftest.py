"""A tiny base, and data that a tiny model can learn."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny_base

SUBJECTS = ["card", "money", "film"]
FILLERS = ["the", "my", "is", "how", "where", "a", "b", "c", "d", "e"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base("bert", tmp_path_factory.mktemp("base"), num_hidden_layers=2)


def sentence(subject: str, rng: random.Random) -> str:
    words = [*rng.choices(FILLERS, k=rng.randint(2, 7)), subject]
    rng.shuffle(words)
    return " ".join(words)


def labelled(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts, each about one of SUBJECTS, which is its label."""
    rng = random.Random(seed)
    return [(sentence(s, rng), s) for s in rng.choices(SUBJECTS, k=count)]


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path
