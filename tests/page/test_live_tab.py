"""Live, and what is on the screen as code that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import playwright
import pytest
from playwright.sync_api import Page, expect

from tests.live import LiveServer
from tests.page.conftest import HOSTILE, Open

NODE = Path(playwright.__file__).parent / "driver/node"


def test_the_batches_and_the_queue_are_those_of_the_api(
    open_page: Open, client: httpx.Client
) -> None:
    body = {"inputs": ["money", "lost card", "good"], "adapters": ["labels", None, "vectors"]}
    client.post("/embed", json=body).raise_for_status()
    page = open_page("live")
    page.get_by_text("The batches as a table").click()
    page.locator("#tab-live").focus()
    live = client.get("/live").json()
    last = live["batches"][-1]
    row = page.locator("#live-rows tr").first.locator("td")
    expect(row.nth(0)).to_have_text(str(last["id"]))
    expect(row.nth(3)).to_have_text(str(sum(last["adapters"].values())))
    parts = [f"{name} {tokens}" for name, tokens in last["adapters"].items()]
    expect(row.nth(4)).to_have_text(", ".join(parts))
    expect(page.locator("#live-rows tr")).to_have_count(len(live["batches"]))
    expect(page.locator("#live-limit")).to_have_text(f"{live['queue']['limit_tokens']:,}")
    expect(page.locator("#live-seconds rect")).to_have_count(60)
    stacked = sum(len(batch["adapters"]) for batch in live["batches"])
    expect(page.locator("#live-batches rect")).to_have_count(stacked)
    names = sorted({name for batch in live["batches"] for name in batch["adapters"]})
    expect(page.locator("#live-legend span")).to_have_text(names)
    colours = page.locator("#live-legend i").evaluate_all("all => all.map(i => i.style.background)")
    assert len(set(colours)) == len(names)


def code(page: Page, language: str) -> str:
    page.get_by_role("button", name="Copy as").click()
    page.get_by_role("button", name=language, exact=True).click()
    text = page.locator("#copy-code").text_content() or ""
    page.keyboard.press("Escape")
    expect(page.locator("#copy")).to_be_hidden()
    return text


def output(language: str, text: str, folder: Path, **environ: str) -> str:
    """Run what was copied."""
    path = folder / ("code.mjs" if language == "JavaScript" else "code")
    path.write_text(text, encoding="utf-8")
    command = {"curl": ["sh"], "JavaScript": [str(NODE)]}.get(language, [sys.executable])
    ran = subprocess.run(
        [*command, str(path)], cwd=folder, env={**os.environ, **environ},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript", "OpenAI"])
def test_what_is_copied_runs_and_answers_what_is_shown(
    open_page: Open, client: httpx.Client, tmp_path: Path, language: str
) -> None:
    page = open_page("try")
    text = f'it\'s "my" card\\ {HOSTILE} $HOME `id` \u2028 ü🎬'
    expect(page.locator("#try-picks input")).not_to_have_count(0)
    for box in page.locator("#try-picks input").all():
        box.set_checked(box.locator("..").text_content() == "labels")
    page.fill("#try-list", "")
    page.fill("#try-text", text)
    printed = output(language, code(page, language), tmp_path)
    labels = client.post("/classify?adapter=labels", json={"inputs": text}).json()
    vector = client.post("/embed", json={"inputs": [text]}).json()[0]
    if language == "curl":
        base, own = printed.strip().split("]][", 1)
        assert json.loads(base + "]]") == [pytest.approx(vector, abs=1e-5)]
        assert [row["label"] for row in json.loads("[" + own)] == [row["label"] for row in labels]
    elif language == "OpenAI":
        assert f"{vector[0]:.4f}"[:6] in printed
        assert printed.count("CreateEmbeddingResponse") == 2
    else:
        assert all(repr(row["label"]) in printed or row["label"] in printed for row in labels)
        assert f"{labels[0]['score']:.4f}"[:5] in printed


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_checked_upload_is_copied_with_its_key_in_a_variable(
    open_page: Open, adapters: dict[str, Path], keyed: LiveServer, tmp_path: Path, language: str
) -> None:
    page = open_page("adapters", url=keyed.url)
    page.fill("#key", "admin-key")
    page.locator("#key").press("Enter")
    for path in adapters["vectors"].iterdir():
        (tmp_path / "vectors").mkdir(exist_ok=True)
        (tmp_path / "vectors" / path.name).write_bytes(path.read_bytes())
    page.set_input_files("#upload-folder", tmp_path / "vectors")
    text = code(page, language)
    assert "admin-key" not in text
    printed = output(language, text, tmp_path, KEY="admin-key")
    version = client_version(keyed, adapters["vectors"])
    assert version in printed


def client_version(keyed: LiveServer, folder: Path) -> Any:
    form = {p.name: (p.name, p.read_bytes()) for p in folder.iterdir() if p.suffix != ".md"}
    by = {"Authorization": "Bearer admin-key"}
    answer = keyed.client.put("/adapters/x?dry_run=true", files=form, headers=by).json()
    return answer["version"]
