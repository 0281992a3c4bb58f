"""What the README and the pages for newcomers say and lead to is there. tests/test_examples.py runs them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from app.settings import PREFIX, Settings
from tests.test_examples import fenced

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("quickstart", "recipes", "migrating"))]
OF_CLIENTS = {"URL", "API_KEY"}  # read by the client commands
SHELL = {"export", "mkdir", "kubectl"}  # nothing of ours is named there


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_it_begins_with_the_two_commands() -> None:
    first = re.search(r"```\w+\n(.*?)```", README, re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make serve",
        "make test",
    ]


def test_it_leads_to_every_page() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)#]+)", README)) == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_figures_beside_others_are_those_that_were_measured() -> None:
    runs = json.loads((ROOT / "docs/plots/data/peers.json").read_text())["runs"]
    ms = {run["title"]: run["ms"] for run in runs}
    http, alone = "64 texts over HTTP, 1 core", "64 texts in process, 1 core"
    one, one_alone = "1 text over HTTP, 1 core", "1 text in process, 1 core"
    shown = {
        f"64 texts {ms[http]['ours']:.0f} ms, through 16 adapters {ms[http]['ours, 16 adapters']:.0f}; "
        f"one text {ms[one]['ours']:.1f} ms",
        f"64 texts {ms[http]['infinity-emb']:.0f} ms, one text {ms[one]['infinity-emb']:.1f} ms",
        f"64 texts through 16 adapters {ms[alone]['PEFT, 16 adapters']:,.0f} ms, "
        f"our engine {ms[alone]['engine, 16 adapters']:.0f}",
        f"onnxruntime takes {ms[one_alone]['onnxruntime']:.2f} ms in a process, "
        f"our engine {ms[one_alone]['engine']:.1f}",
    }
    for words in shown:
        assert words in README.replace("\n", " "), words


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_and_flag_that_is_named_exists(page: str) -> None:
    text = text_of(page)
    named = set(re.findall(rf"{PREFIX}([A-Z0-9_]+)", text)) - OF_CLIENTS
    cells = [row.split("|")[2] for row in text.splitlines() if row.startswith("| `")]
    for part in cells if page == "docs/migrating.md" else []:
        named |= {flag.upper().replace("-", "_") for flag in re.findall(r"--([a-z-]+)", part)}
    assert {name.lower() for name in named} - Settings.model_fields.keys() == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_line_that_no_test_runs_names_what_exists(page: str) -> None:
    """The containers themselves: tests/deploy/test_compose.py, test_chart.py."""
    targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    compose = yaml.safe_load(text_of("docker-compose.yml"))
    lines = [line for block in fenced(page, "console") for line in block.splitlines()]
    for line in lines:
        words = [word for word in line.split("#")[0].split() if not word.startswith(PREFIX)]
        match words:
            case ["make", target]:
                assert target in targets
            case [".venv/bin/pip", "install", "-e", extra]:
                assert extra.strip("'.[]") in extras
            case ["docker", "compose", "up"]:
                assert "server" in compose["services"]
            case ["docker", "compose", "--profile", profile, "up", service]:
                assert compose["services"][service]["profiles"] == [profile]
            case ["helm", "install", _, chart, *options]:
                values = yaml.safe_load((ROOT / chart / "values.yaml").read_text())
                for name in (option.split("=")[0] for option in options[1::2]):
                    outer, _, inner = name.partition(".")
                    assert inner in values[outer], name
            case _:
                assert words[0] in SHELL, line
    assert lines or page == "docs/migrating.md"


def test_the_shipped_adapters_are_small_and_have_cards() -> None:
    folders = [p for p in (ROOT / "adapters").iterdir() if p.is_dir()]
    assert {p.name for p in folders} == {"banking77", "clinc150", "rerank", "sentiment"}
    weights = [p / "adapter_model.safetensors" for p in folders]
    assert sum(w.stat().st_size for w in weights) < 6_000_000
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        for word in ("Data", "Licence", "Command", "Seed", "Result"):
            assert f"**{word}**" in card, (folder.name, word)
