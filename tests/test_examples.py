"""Every example of the README, of docs/ and of examples/ runs as pasted, on a clone's own adapters.

A block in bash or python is run, in the order of its page and in a folder of its own. The block in json or
text behind it is what it has to print. Blocks in console are not run: tests/test_readme.py looks at them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live import LiveServer, live_server

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/client.md", "docs/recipes.md", "docs/migrating.md"]
RUN, SHOWN = ("bash", "python"), ("json", "text")
CLOSE = 0.01  # of a score that is shown
FENCE = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """shown: what it has to print, as (language, text)."""

    language: str
    text: str
    shown: tuple[str, str] | None = None


def blocks(page: str) -> list[Block]:
    """Those that are run, in order. A file's content, whose fence has a name, is none of them."""
    fences = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [
        Block(language, text, _shown(fences, i))
        for i, (language, _, text) in enumerate(fences)
        if language in RUN
    ]


def _shown(fences: list[tuple[str, str, str]], i: int) -> tuple[str, str] | None:
    language, name, text = fences[i + 1] if i + 1 < len(fences) else ("", "", "")
    return (language, text) if language in SHOWN and not name else None


def fenced(page: str, language: str, name: str = "") -> list[str]:
    found = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [text for kind, named, text in found if (kind, named) == (language, name)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """With the adapters of a clone and the tasks of docs/recipes.md."""
    folder = tmp_path_factory.mktemp("server")
    (tasks,) = fenced("docs/recipes.md", "json", "tasks.json")
    (folder / "tasks.json").write_text(tasks)
    live = live_server(
        store=folder / "store",
        adapters_dir=ROOT / "adapters",
        tasks_file=folder / "tasks.json",
        source_dirs=str(ROOT / "adapters"),
    )
    yield live
    live.stop()


@dataclass
class Pasting:
    """Runs a page's blocks against the server, in a folder that has the clone's adapters."""

    server: LiveServer
    folder: Path
    names: dict[str, Any]

    def run(self, block: Block) -> str:
        """What it prints."""
        text = block.text.replace("localhost:8080", self.server.url.removeprefix("http://"))
        text = text.replace("/srv/adapters", str(ROOT / "adapters"))
        return self._bash(text) if block.language == "bash" else self._python(text)

    def _bash(self, text: str) -> str:
        if "curl" in text and shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        script = (
            f'set -euo pipefail\nbert-lora() {{ "{sys.executable}" -m bert_lora "$@"; }}\n'
            'curl() { command curl --fail-with-body -w "\\n" "$@"; }\n'
        )
        done = subprocess.run(
            ["bash", "-c", script + text],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "BERT_LORA_URL": self.server.url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _python(self, text: str) -> str:
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(text, self.names)
        return printed.getvalue()


@pytest.fixture
def pasting(server: LiveServer, tmp_path: Path) -> Pasting:
    shutil.copytree(ROOT / "adapters", tmp_path / "adapters")
    return Pasting(server, tmp_path, {})


def check(shown: tuple[str, str] | None, printed: str, url: str) -> None:
    """What is shown is printed: JSON as the last line, its numbers nearly; of text every line, in
    order, where … stands for anything.
    """
    if shown is None:
        return
    language, text = shown
    if language == "json":
        last = json.loads(printed.strip().splitlines()[-1])
        assert nearly(json.loads(text), last), f"the page shows\n{text}\nthe server says\n{last}"
        return
    text = text.replace("localhost:8080", url.removeprefix("http://"))
    lines = iter(printed.splitlines())
    for line in text.splitlines():
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert any(re.fullmatch(pattern, got.strip()) for got in lines), f"{line}\nin\n{printed}"


def nearly(shown: Any, got: Any) -> bool:
    """The same but for numbers, which may be CLOSE apart."""
    match shown:
        case dict():
            return shown.keys() == got.keys() and all(nearly(shown[k], got[k]) for k in shown)
        case list():
            return len(shown) == len(got) and all(map(nearly, shown, got))
        case float():
            return bool(abs(shown - got) <= CLOSE)
        case _:
            return bool(shown == got)


def run_page(page: str, pasting: Pasting, without: str = "\0") -> None:
    """without: blocks that have this are left out."""
    found = [block for block in blocks(page) if without not in block.text]
    assert len(found) >= 2
    for block in found:
        check(block.shown, pasting.run(block), pasting.server.url)


@pytest.mark.parametrize("page", PAGES)
def test_each_block_runs_and_prints_what_is_shown(page: str, pasting: Pasting) -> None:
    run_page(page, pasting)


def test_the_command_lines_blocks_leave_the_files_that_they_name(pasting: Pasting) -> None:
    """But for the one that loads the model again."""
    run_page("docs/cli.md", pasting, without="--local")
    rows = map(json.loads, (pasting.folder / "labels.jsonl").read_text().splitlines())
    assert [row["labels"][0]["label"] for row in rows] == ["positive", "negative"]
    assert np.load(pasting.folder / "vectors.npy").shape == (2, 384)


@pytest.mark.slow
def test_without_a_server_the_command_line_gives_vectors_too(pasting: Pasting) -> None:
    run_page("docs/cli.md", pasting)
    assert np.load(pasting.folder / "here.npy").shape == (2, 384)


@pytest.mark.slow
def test_from_a_file_to_an_adapter_that_answers(pasting: Pasting) -> None:
    run_page("docs/quickstart.md", pasting)
    history = pasting.server.client.get("/adapters/support/versions").json()
    assert [entry["how"] for entry in history] == ["put", "put", "rollback"]


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads(Path("tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["together_differs"] < 1e-5
    assert names["served_differs"] < 1e-5
    assert names["shares"]["clinc150"] > names["shares"]["base"]
    assert names["shares"]["mine, apart"] > names["shares"]["base, apart"]
