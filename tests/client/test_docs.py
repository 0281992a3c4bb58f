"""Every example of docs/client.md and docs/cli.md runs as pasted, on a clone's own adapters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bert_lora
from bert_lora.cli import COMMANDS, cli
from bert_lora.cli.connection import INTERRUPTED, NO_ANSWER, REFUSED, WRONG_USE
from tests.live import LiveServer, live_server

ROOT = Path(__file__).parent.parent.parent
CLIENT = (ROOT / "docs/client.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    store = tmp_path_factory.mktemp("store")
    live = live_server(store=store, adapters_dir=ROOT / "adapters")
    yield live
    live.stop()


def test_every_python_example_runs(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("http://localhost:8080", server.url), names)
    printed = capsys.readouterr().out
    assert "validation 1" in printed
    assert "\n0.0\n" in printed
    assert isinstance(names["tuned"], np.ndarray)


def test_every_shell_example_runs(server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    blocks = re.findall(r"```bash\n(.*?)```", CLI, re.DOTALL)
    assert len(blocks) >= 2
    script = f'set -euo pipefail\nbert-lora() {{ "{sys.executable}" -m bert_lora "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", script + "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BERT_LORA_URL": server.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == ["positive", "negative"]
    assert np.load(tmp_path / "vectors.npy").shape == (2, 384)
    assert np.load(tmp_path / "here.npy").shape == (2, 384)


def test_every_command_code_and_error_is_in_the_docs() -> None:
    for name in COMMANDS:
        assert f"`{name}`" in CLI, name
    for code in (REFUSED, WRONG_USE, NO_ANSWER, INTERRUPTED):
        assert f"| {code} |" in CLI
    for name in set(bert_lora.__all__) - {"Local"}:
        assert f"`{name}`" in CLIENT or f"bert_lora.{name}" in CLIENT, name
    for name in dir(bert_lora.Client):
        assert name.startswith("_") or name in ("each", "close") or f"`{name}(" in CLIENT, name


@pytest.mark.parametrize("command", ["embed", "classify", "rerank"])
def test_every_long_option_of_the_docs_is_one(command: str) -> None:
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(cli, [command, "--help"]).output))
    for option in ("--column", "--field", "--format", "--resume", "--progress", "--local"):
        assert option in CLI
        assert option in known
