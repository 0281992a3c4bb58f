"""The page in a real headless Chromium, on one server; a run with a violation or an error in its console fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from tests.kinds import make_kind
from tests.live import LiveServer, live_server
from tests.oracles import make_adapter, put

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
HOSTILE = "<img src=x onerror=\"document.title='run'\">"
WAIT_MS = 15_000
# What Chromium writes of a refusal, which a test has asked for.
EXPECTED = "Failed to load resource: the server responded with a status of 4"
# A violation of the policy is an error of the console, too; this holds where nobody looks there.
WATCH = "addEventListener('securitypolicyviolation', (e) => console.error('CSP: ' + e.blockedURI));"


@pytest.fixture(scope="module")  # while it runs, no other test of the process can run a loop
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the page is not tested here; apt-get install chromium")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders: labels with a hostile one, words, a ranker, an embedder."""
    root = tmp_path_factory.mktemp("page-adapters")
    return {
        "labels": make_adapter(tiny_bert, root / "labels", 1, labels=3, scale=4),
        "ranker": make_adapter(tiny_bert, root / "ranker", 2, labels=1, scale=4),
        "vectors": make_adapter(tiny_bert, root / "vectors", 3, scale=8),
        "words": make_kind("plain", "bert", tiny_bert, root / "words", task="TOKEN_CLS", labels=3),
    }


@pytest.fixture(scope="session")
def server(
    tiny_bert: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """Without keys: whoever is on this machine may do everything."""
    folder = tmp_path_factory.mktemp("page")
    server = live_server(model=str(tiny_bert), store=folder / "store", adapters_dir=folder / "none")
    put(server.client, "labels", adapters["labels"], labels=f"good,bad,{HOSTILE}")
    put(server.client, "words", adapters["words"], labels=f"O,{HOSTILE},city")
    for name in ("ranker", "vectors"):
        put(server.client, name, adapters[name])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def keyed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that wants keys: one for inference, one for admins."""
    folder = tmp_path_factory.mktemp("keyed-page")
    server = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        api_keys="inference-key",
        admin_keys="admin-key",
    )
    yield server
    server.stop()


Open = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, server: LiveServer) -> Iterator[Open]:
    """open_page(tab="try", url=…, width=1280, scheme="light"): a new browser's page, loaded."""
    told: list[str] = []
    contexts = []

    def opened(
        tab: str = "try", url: str = server.url, width: int = 1280, scheme: Any = "light"
    ) -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.add_init_script(WATCH)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on(
            "console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(f"{url}/#/{tab}")
        expect(page.locator("#about")).not_to_have_text("…")
        return page

    expect.set_options(timeout=WAIT_MS)
    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.title() == "bert-lora-server", "a hostile text has run"
            assert page.locator("img").count() == 0
        context.close()
    assert [text for text in told if not text.startswith(EXPECTED)] == []


@pytest.fixture
def client(server: LiveServer) -> httpx.Client:
    return server.client
