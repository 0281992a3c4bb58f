"""Adapters: checked before anything is served; cards that say what the API says."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import load_file, save_file

from tests.api.test_running import metric
from tests.live import LiveServer
from tests.oracles import make_adapter, put
from tests.page.conftest import HOSTILE, Open


@pytest.fixture
def mine(client: httpx.Client) -> Iterator[str]:
    """A name that the test uploads; gone after it."""
    yield "mine"
    client.delete("/adapters/mine")


def zipped(adapter: Path, into: Path) -> Path:
    with zipfile.ZipFile(into, "w") as archive:
        for path in adapter.iterdir():
            archive.write(path, f"run/{path.name}")
    return into


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def cells(where: Locator) -> dict[str, str]:
    """What the grid says of each module."""
    boxes = where.locator(".grid td > div")
    titles = boxes.evaluate_all("all => all.map(box => box.title)")
    return dict(title.split(": ", 1) for title in titles)


def words(size: float | None) -> str:
    return "untouched" if size is None else f"{100 * size:.2f} % of the weight's size"


def drop(page: Page, path: Path) -> None:
    """As a mouse drops a folder or a file from elsewhere."""
    page.locator("#drop").wait_for()
    box = page.locator("#drop").bounding_box()
    assert box is not None
    at = {"x": box["x"] + 40, "y": box["y"] + 20}
    files = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": step, **at, "data": files})
    session.detach()


@pytest.mark.parametrize("way", ["folder", "drop", "zip", "file"])
def test_an_upload_is_checked_first_and_served_when_somebody_says_so(
    open_page: Open,
    client: httpx.Client,
    adapters: dict[str, Path],
    tmp_path: Path,
    mine: str,
    way: str,
) -> None:
    page = open_page("adapters")
    folder = tmp_path / "mine"
    shutil.copytree(adapters["vectors"], folder)
    (folder / "optimizer.pt").write_bytes(b"x" * 1000)
    if way == "folder":
        page.set_input_files("#upload-folder", folder)
        expect(page.locator("#upload-files")).to_contain_text("other file")
    elif way == "drop":
        drop(page, folder)
    elif way == "zip":
        page.set_input_files("#upload-file", zipped(adapters["vectors"], tmp_path / "Mine.zip"))
    else:
        shutil.copy(folder / "adapter_model.safetensors", tmp_path / "mine.safetensors")
        page.set_input_files("#upload-file", tmp_path / "mine.safetensors")
        page.get_by_text("What the files do not say").click()
        page.fill("#upload-alpha", "16")
    expect(page.locator("#upload-name")).to_have_value(mine)
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.locator("#upload-status")).to_have_text(
        "It would be served as mine. Nothing is served yet."
    )
    assert client.get("/adapters/mine").status_code == 404
    told = cells(page.locator("#upload-report"))
    changes = client.get("/adapters/vectors/changes").json()["changes"]
    assert told == {path: words(size) for path, size in changes.items()}
    page.get_by_role("button", name="Serve it").click()
    expect(page.locator("#upload-status")).to_contain_text("mine is served.")
    served = client.get("/adapters/mine").json()
    expect(card(page, "mine").locator(".hash").first).to_have_text(served["version"][:12])
    page.get_by_role("button", name="Try it").click()
    expect(page.locator("#try-cards article")).to_have_count(2)
    expect(page.get_by_role("article", name="mine").locator(".bars")).to_be_visible()


def test_what_is_refused_is_red_where_it_is_and_says_why(
    open_page: Open, client: httpx.Client, adapters: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(adapters["vectors"] / "adapter_model.safetensors")
    bad = next(name for name in tensors if "layer.1" in name and "query.lora_A" in name)
    tensors[bad] = tensors[bad][:, :5].contiguous()
    tensors[HOSTILE] = tensors[bad].clone()
    folder = tmp_path / "broken"
    shutil.copytree(adapters["vectors"], folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    page = open_page("adapters")
    page.set_input_files("#upload-folder", folder)
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.locator("#upload-status")).to_contain_text("Refused: ")
    form = {p.name: (p.name, p.read_bytes()) for p in folder.iterdir()}
    answer = client.put("/adapters/broken?dry_run=true", files=form).json()
    expect(page.locator("#upload-status")).to_have_text(f"Refused: {answer['error']}")
    expected = [f"{p['tensor']}: {p['reason']}" if "tensor" in p else p["reason"] for p in answer["problems"]]  # fmt: skip
    expect(page.locator("#upload-report .problems li")).to_have_text(expected)
    expect(page.get_by_role("button", name="Serve it")).to_be_hidden()
    red = page.locator("#upload-report .grid .refused")
    expect(red).to_have_count(1)
    assert "encoder.layer.1.attention.self.query: refused: " in (red.get_attribute("title") or "")
    assert client.get("/adapters/broken").status_code == 404


def test_a_card_has_layers_traffic_and_merge(
    open_page: Open, client: httpx.Client, server: LiveServer
) -> None:
    client.post("/classify?adapter=labels", json={"inputs": "money"}).raise_for_status()
    page = open_page("adapters")
    mine = card(page, "labels")
    requests = metric(client, "bert_lora_requests_total", adapter="labels")
    tokens = metric(client, "bert_lora_tokens_total", adapter="labels")
    expect(mine.locator(".traffic")).to_have_text(f"{requests:.0f} requests, 0 errors, {tokens:.0f} tokens")  # fmt: skip
    expect(mine).to_contain_text(HOSTILE)
    mine.get_by_role("button", name="Layers").click()
    changes = client.get("/adapters/labels/changes").json()["changes"]
    expect(mine.locator(".grid")).to_be_visible()
    assert cells(mine) == {path: words(size) for path, size in changes.items()}
    mine.get_by_role("button", name="Merge").click()
    expect(page.locator("#adapters-status")).to_have_text("labels is merged.")
    assert client.get("/adapters/labels").json()["merged"] is True
    mine.get_by_role("button", name="Unmerge").click()
    expect(page.locator("#adapters-status")).to_have_text("labels is no longer merged.")
    assert client.get("/adapters/labels").json()["merged"] is False


def test_a_canarys_arms_are_compared_and_it_ends_as_somebody_says(
    open_page: Open,
    client: httpx.Client,
    adapters: dict[str, Path],
    tiny_bert: Path,
    tmp_path: Path,
    mine: str,
) -> None:
    first = put(client, mine, adapters["vectors"])["version"]
    second = make_adapter(tiny_bert, tmp_path / "second", 8, scale=8)
    page = open_page("adapters")
    page.set_input_files("#upload-folder", second)
    page.fill("#upload-name", mine)
    page.get_by_role("button", name="Check", exact=True).click()
    page.get_by_label("beside the current version").check()
    page.get_by_role("button", name="Replace the one that is served").click()
    expect(page.locator("#upload-status")).to_contain_text("Held beside mine")
    staged = client.get(f"/adapters/{mine}/versions").json()[-1]["version"]
    assert client.get(f"/adapters/{mine}").json()["version"] == first != staged
    mine_card = card(page, mine)
    mine_card.get_by_role("button", name="Versions").click()
    mine_card.get_by_label("Percent").fill("50")
    mine_card.get_by_role("button", name="Canary").click()
    expect(page.locator("#adapters-status")).to_have_text("mine has a canary.")
    trial = client.get(f"/adapters/{mine}").json()["trial"]
    assert (trial["mode"], trial["version"], trial["percent"]) == ("canary", staged, 50)
    for i in range(20):
        client.post(f"/embed?adapter={mine}", json={"inputs": f"good {i}"}).raise_for_status()
    page.locator("#tab-live").click()
    page.locator("#tab-adapters").click()
    counts = [metric(client, "bert_lora_trial_requests_total", adapter=mine, arm=arm) for arm in ("current", "canary")]  # fmt: skip
    assert sum(counts) == 20
    row = mine_card.locator(".arms tr", has_text="Requests").locator("td")
    expect(row).to_have_text([f"{count:.0f}" for count in counts])
    mean = mine_card.locator(".arms tr", has_text="Mean").locator("td").first
    seconds = metric(client, "bert_lora_trial_seconds_sum", adapter=mine, arm="current")
    expect(mean).to_have_text(f"{1000 * seconds / counts[0]:.1f} ms")
    mine_card.get_by_role("button", name="Promote").click()
    expect(page.locator("#adapters-status")).to_contain_text("has its trial's version now")
    assert client.get(f"/adapters/{mine}").json()["version"] == staged
    row_of_first = mine_card.locator(
        "tr", has_text=first[:8]
    )  # without a button until it is current no more
    row_of_first.get_by_role("button", name="Roll back").click()
    expect(page.locator("#adapters-status")).to_have_text("mine is rolled back.")
    assert client.get(f"/adapters/{mine}").json()["version"] == first


def test_a_key_for_inference_reads_and_changes_nothing(
    open_page: Open, keyed: LiveServer, adapters: dict[str, Path]
) -> None:
    admin = {"Authorization": "Bearer admin-key"}
    form = {p.name: (p.name, p.read_bytes()) for p in adapters["vectors"].iterdir()}
    keyed.client.put("/adapters/there", files=form, headers=admin).raise_for_status()
    page = open_page("adapters", url=keyed.url)
    expect(card(page, "there")).to_have_count(0)
    page.fill("#key", "inference-key")
    page.locator("#key").press("Enter")
    there = card(page, "there")
    expect(page.get_by_text("Read-only: adapters are changed with an admin key")).to_be_visible()
    there.get_by_role("button", name="Versions").click()
    expect(there.get_by_text("current", exact=True)).to_be_visible()
    expect(there.get_by_role("button")).to_have_text(["Layers", "Versions"])
    expect(page.locator("#drop")).to_be_hidden()
    page.fill("#key", "admin-key")
    page.locator("#key").press("Enter")
    expect(card(page, "there").get_by_role("button", name="Merge")).to_be_visible()


def test_a_list_is_filtered_by_name(open_page: Open) -> None:
    page = open_page("adapters")
    expect(page.locator("#adapters-cards article")).to_have_count(4)
    page.fill("#adapters-filter", "ord")
    expect(page.locator("#adapters-cards article")).to_have_count(1)
    expect(page.locator("#adapters-count")).to_have_text("1 adapter of that name")
