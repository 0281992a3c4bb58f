"""The frame: tabs, the key, widths, colours, names."""

from __future__ import annotations

import http.server
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.live import LiveServer
from tests.page.conftest import Open

TABS = ("try", "map", "adapters", "live")
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
# Of every text that is seen: its contrast with what is behind it.
CONTRASTS = """() => {
  const draw = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    draw.clearRect(0, 0, 1, 1); draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1);
    return [...draw.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgba(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.checkVisibility() && !node.closest('.unseen') && [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .map((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
      return [node.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""
NEED_NAMES = {"button", "textbox", "searchbox", "checkbox", "combobox", "slider", "tab", "img", "meter", "progressbar", "spinbutton", "link"}  # fmt: skip


def show_everything(page: Page, tab: str) -> None:
    """Open what a tab keeps closed."""
    if tab == "try":
        expect(page.locator("#try-cards .bars").first).to_be_visible()
    if tab == "map":
        page.fill("#map-text", "text,label\nmy card,a\nthe film,b\ngood money,a\nlost love,b\n")
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#map-legend button")).to_have_count(2)
    if tab == "adapters":
        paths = [f"encoder.layer.{i}.attention.output.dense" for i in range(24)]
        large = {"changes": {path: 0.01 * i for i, path in enumerate(paths)}}
        page.route("**/changes", lambda route: route.fulfill(json=large))  # of a large base
        page.get_by_role("button", name="Layers").first.click()
        expect(page.locator(".grid")).to_be_visible()
    if tab == "live":
        page.get_by_text("The batches as a table").click()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_each_tab_fits_its_width_can_be_read_and_names_what_it_has(
    open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(width=width, scheme=scheme)
    for tab in TABS:
        page.locator(f"#tab-{tab}").click()
        show_everything(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 10
        assert [text for text in contrasts if text[1] < LEAST_CONTRAST] == [], tab
        assert unnamed(page) == [], tab


def unnamed(page: Page) -> list[str]:
    """Roles of what a screen reader meets without a name."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    told = [node for node in nodes if not node.get("ignored")]
    assert len(told) > 20
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told]
    return [role for role, name in roles if role in NEED_NAMES and not name.strip()]


def test_tabs_follow_the_arrow_keys_and_the_focus_is_seen(open_page: Open) -> None:
    page = open_page()
    page.locator("#tab-try").focus()
    for key, tab in (("ArrowRight", "map"), ("ArrowLeft", "try"), ("ArrowLeft", "live"), ("Home", "try"), ("End", "live")):  # fmt: skip
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.get_by_role("tab", selected=True)).to_have_id(f"tab-{tab}")
        expect(page.get_by_role("tabpanel")).to_have_count(1)
        expect(page.get_by_role("tabpanel")).to_have_id(tab)
    outline = "e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
    assert page.locator("#tab-live").evaluate(outline) == "solid3px"
    page.reload()
    expect(page.get_by_role("tab", selected=True)).to_have_id("tab-live")


def test_everything_is_reached_by_the_tab_key(open_page: Open) -> None:
    page = open_page("try")
    expect(page.locator("#try-cards .bars").first).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:7] == ["key", "use-key", "tab-try", "copy-open", "A", "try-text", "INPUT"]
    assert "try-list" in reached


def test_a_key_is_sent_and_is_nowhere_but_in_memory(open_page: Open, keyed: LiveServer) -> None:
    page = open_page(url=keyed.url)
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request))  # noqa: PLW0108
    expect(page.locator("#may")).to_have_text("a key is needed")
    page.fill("#key", "wrong")
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#may")).to_have_text("this key is not known here")
    for key, may in (("inference-key", "read-only"), ("admin-key", "may change adapters")):
        page.fill("#key", key)
        page.locator("#key").press("Enter")
        expect(page.locator("#may")).to_have_text(may)
        page.locator("#tab-adapters").click()
        expect(page.locator("#drop")).to_be_visible(visible=key == "admin-key")
        page.locator("#tab-try").click()
        expect(page.locator("#try-cards .bars").first).to_be_visible()
        last = [request for request in asked if request.method == "POST"][-1]
        assert last.all_headers()["authorization"] == f"Bearer {key}"
    assert not [request.url for request in asked if "key" in request.url.partition("//")[2]]
    kept = (
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "key" not in page.evaluate(kept)
    page.reload()
    expect(page.locator("#may")).to_have_text("a key is needed")


class Proxy(http.server.BaseHTTPRequestHandler):
    """What stands below /bert/ here is the server's; nothing else is there."""

    upstream = ""

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if not self.path.startswith("/bert/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0))) or None
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        request = urllib.request.Request(
            self.upstream + self.path.removeprefix("/bert"), body, kept, method=self.command
        )
        with urllib.request.urlopen(request) as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def proxy(server: LiveServer) -> Iterator[str]:
    handler = type("Handler", (Proxy,), {"upstream": server.url})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/bert"
        listening.shutdown()
        thread.join()


def test_it_works_below_a_proxys_prefix(proxy: str, open_page: Open) -> None:  # it ends first
    page = open_page(url=proxy)
    expect(page.locator("#try-cards .bars").first).to_be_visible()
    page.locator("#tab-live").click()
    expect(page.locator("#live-limit")).not_to_have_text("–")
    page.get_by_role("button", name="Copy as").click()
    expect(page.locator("#copy-code")).to_contain_text(f"{proxy}/")
