"""python -m benchmarks.gpu runs on a machine without a card, small, and writes what it says it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def ran(out: Path, *option: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--small",
        "--out",
        str(out),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *option], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def written(out: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{stage}.json").read_text()))


@pytest.mark.slow
def test_a_forward_is_measured_beside_its_peers(tmp_path: Path) -> None:
    done = ran(tmp_path, "--stage", "forward")
    assert done.returncode == 0, done.stderr
    found = written(tmp_path, "forward")
    cells = found["minilm"]["float32"]["4 texts"]
    assert {"plain transformers", "bare products", "base", "1 adapters"} <= set(cells)
    assert (
        cells["base"]["ms"] > 0 and found["PEFT"]["minilm"]["float32"]["4 texts"]["times ours"] > 0
    )


@pytest.mark.slow
def test_a_thousand_adapters_stage_ends_without_a_card(tmp_path: Path) -> None:
    done = ran(tmp_path, "--stage", "memory")
    assert done.returncode == 0, done.stderr
    assert written(tmp_path, "memory")["20 adapters"]["bytes"] > 0


def test_a_stage_that_outlasts_its_limit_is_named_and_the_others_run(tmp_path: Path) -> None:
    done = ran(tmp_path, "--stage", "memory", "--stage", "forward", "--seconds", "0.1")
    assert done.returncode != 0
    assert "failed: memory, forward" in done.stderr


def test_a_stage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "invalid choice" in ran(tmp_path, "--stage", "none").stderr
