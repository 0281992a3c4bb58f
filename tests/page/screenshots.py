"""The pictures of docs/page.md: the page on a server of its own, with the adapters that are shipped.

python -m tests.page.screenshots --texts texts.csv     (a CSV of some 300 texts and their intents)
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright
from safetensors.torch import load_file, save_file

from tests.live import live_server

ROOT = Path(__file__).parent.parent.parent
INTO = ROOT / "docs/page"


def shoot(page: Page, name: str, height: int = 900) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    page.mouse.move(0, 0)
    page.screenshot(path=INTO / f"{name}.png", clip={"x": 0, "y": 0, "width": width, "height": height})  # fmt: skip


def shoot_map(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.locator("#map-drawn").screenshot(path=INTO / f"{name}.png")


def traffic(url: str, texts: list[str], ended: threading.Event) -> None:
    """Requests through all adapters at once, until it has ended."""
    rng = random.Random(1)
    with httpx.Client(base_url=url, timeout=60) as client:
        while not ended.is_set():
            names = rng.choices(["banking77", "clinc150", "sentiment", None], k=rng.randint(4, 40))
            client.post("/embed", json={"inputs": rng.sample(texts, len(names)), "adapters": names})


def try_tab(page: Page) -> None:
    page.locator("#try-picks input").first.wait_for()
    page.get_by_role("checkbox", name="clinc150").uncheck()
    page.get_by_role("checkbox", name="sentiment").check()
    expect(page.locator("#try-cards article")).to_have_count(3)
    expect(page.locator("#try-cards [aria-busy]")).to_have_count(0)


def map_tab(page: Page, texts: Path) -> None:
    page.locator("#tab-map").click()
    page.set_input_files("#map-file", texts)
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("same label").wait_for(timeout=120_000)
    page.wait_for_timeout(300)


def adapters_tab(page: Page, folder: Path) -> None:
    page.locator("#tab-adapters").click()
    page.set_input_files("#upload-folder", folder)
    page.get_by_role("button", name="Check", exact=True).click()
    page.locator("#upload-report .grid").wait_for()
    page.wait_for_timeout(300)


def broken(adapter: Path, folder: Path) -> Path:
    """The adapter with one tensor of another shape."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in tensors if "layer.3." in n and "value.lora_A" in n)
    tensors[name] = tensors[name][:, :100].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    texts = parser.parse_args().texts
    INTO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Path(folder) / "store"
        server = live_server(store=store, adapters_dir=ROOT / "adapters")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        wide = browser.new_page(viewport={"width": 1000, "height": 900})
        wide.goto(server.url)
        try_tab(wide)
        shoot(wide, "try", 700)
        map_tab(wide, texts)
        shoot_map(wide, "map-base")
        wide.locator("#map-slider").focus()
        wide.keyboard.press("End")
        wide.evaluate("document.activeElement.blur()")
        shoot_map(wide, "map-adapter")
        adapters_tab(wide, ROOT / "adapters/sentiment")
        shoot(wide, "adapters-check", 880)
        adapters_tab(wide, broken(ROOT / "adapters/sentiment", Path(folder) / "sentiment"))
        wide.locator("#upload-form").screenshot(path=INTO / "adapters-refused.png")
        ended = threading.Event()
        lines = texts.read_text(encoding="utf-8").splitlines()
        thread = threading.Thread(target=traffic, args=(server.url, lines, ended))
        thread.start()
        narrow = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
        narrow.goto(server.url)
        try_tab(narrow)
        shoot(narrow, "try-narrow-dark", 800)
        wide.locator("#tab-live").click()
        wide.wait_for_timeout(12_000)
        ended.set()
        thread.join()
        shoot(wide, "live", 720)
        browser.close()
        server.stop()


if __name__ == "__main__":
    main()
