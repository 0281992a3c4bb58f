"""Try: what stands on a card is what the API answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.page.conftest import HOSTILE, Open

TEXT = "where is my lost card"
LIST = ["how good is the film", "my card is lost", "money money money"]


def pick(page: Page, *names: str) -> None:
    """Exactly these adapters."""
    expect(page.locator("#try-picks input")).not_to_have_count(0)
    for box in page.locator("#try-picks input").all():
        wanted = (box.locator("..").text_content() or "") in names
        box.set_checked(wanted)
    expect(page.locator("#try-cards article")).to_have_count(1 + len(names))


def ask(page: Page, text: str, lines: list[str]) -> None:
    """Type both, and wait until every card has its answer."""
    page.fill("#try-list", "\n".join(lines))
    page.fill("#try-text", text)
    expect(page.locator("#try-cards [aria-busy]")).to_have_count(0)


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def bars(card: Locator, at: int) -> list[tuple[str, str]]:
    """Names and numbers of one of a card's lists."""
    rows = card.locator(".bars").nth(at).locator("li")
    texts = rows.evaluate_all(
        "rows => rows.map(r => [r.querySelector('.name').textContent, r.querySelector('.number').textContent])"
    )
    return [(name, number) for name, number in texts]


def cosines(client: httpx.Client, name: str, text: str, lines: list[str]) -> list[tuple[str, str]]:
    body = {"inputs": {"source_sentence": text, "sentences": lines}}
    scores: list[float] = client.post(f"/similarity?adapter={name}", json=body).json()
    order = sorted(zip(scores, lines, strict=True), reverse=True)
    return [(line, f"{score:.3f}") for score, line in order]


def test_labels_are_the_apis_and_so_are_the_nearest_lines(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page()
    pick(page, "labels", "vectors")
    ask(page, TEXT, LIST)
    shown = bars(card(page, "labels"), 0)
    answer = client.post("/classify?adapter=labels", json={"inputs": TEXT}).json()
    assert shown == [(row["label"], f"{100 * row['score']:.1f} %") for row in answer]
    assert HOSTILE in dict(shown)
    assert bars(card(page, "labels"), 1) == cosines(client, "labels", TEXT, LIST)
    for name in ("vectors", "base"):
        assert bars(card(page, name), 0) == cosines(client, name, TEXT, LIST)
    version = client.get("/adapters/labels").json()["version"]
    expect(card(page, "labels").locator(".hash")).to_have_text(version[:12])
    expect(card(page, "labels").locator(".meta")).to_contain_text(" ms, model ")
    expect(page.locator("#try-status")).to_contain_text(f"labels: {shown[0][0]}")


def test_words_are_marked_where_the_api_says(open_page: Open, client: httpx.Client) -> None:
    page = open_page()
    pick(page, "words")
    text = f"my 🎬 card is lost, {HOSTILE} and the film"
    ask(page, text, [])
    rows = client.post("/classify?adapter=words", json={"inputs": text}).json()
    assert rows, "the adapter marks nothing: the test needs other words"
    marks = card(page, "words").locator("mark")
    expect(marks).to_have_count(len(rows))
    for mark, row in zip(marks.all(), rows, strict=True):
        expected = text[row["start"] : row["end"]] + row["entity_group"]
        expect(mark).to_have_text(expected, use_inner_text=False)
    whole = (
        card(page, "words")
        .locator(".words")
        .evaluate(
            "p => { const c = p.cloneNode(true); for (const s of c.querySelectorAll('small')) s.remove(); return c.textContent; }"
        )
    )
    assert whole == text


def test_a_ranker_ranks_the_list(open_page: Open, client: httpx.Client) -> None:
    page = open_page()
    pick(page, "ranker")
    ask(page, TEXT, LIST)
    rows = client.post("/rerank?adapter=ranker", json={"query": TEXT, "texts": LIST}).json()
    expected = [(LIST[row["index"]], f"{100 * row['score']:.1f} %") for row in rows]
    assert bars(card(page, "ranker"), 0) == expected


def test_while_somebody_types_few_requests_are_sent_and_the_last_one_is_shown(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page()
    pick(page, "labels")
    ask(page, "the first text", [])
    asked: list[Any] = []
    aborted: list[Any] = []

    def hold(route: Route) -> None:
        asked.append(route.request.post_data_json["inputs"])
        if len(asked) > 1:
            route.continue_()  # the first is never answered

    page.route("**/classify*", hold)
    page.on("requestfailed", lambda request: aborted.append(request.post_data_json["inputs"]))
    page.locator("#try-text").press_sequentially(" is good and long", delay=10)
    page.wait_for_timeout(400)
    assert len(asked) == 1, "a request for each key"
    page.fill("#try-text", "money")
    expect(page.locator("#try-cards [aria-busy]")).to_have_count(0)
    assert asked[-1] == "money"
    assert aborted == [asked[0]]
    best = client.post("/classify?adapter=labels", json={"inputs": "money"}).json()[0]
    assert bars(card(page, "labels"), 0)[0] == (best["label"], f"{100 * best['score']:.1f} %")


@pytest.mark.parametrize("text", ["", "   "])
def test_of_no_text_nothing_is_asked(open_page: Open, text: str) -> None:
    page = open_page()
    expect(page.locator("#try-cards .bars").first).to_be_visible()
    expect(page.locator("#try-cards [aria-busy]")).to_have_count(0)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.fill("#try-text", text)
    page.wait_for_timeout(400)
    assert asked == []


def test_a_weighted_sum_is_the_apis_by_mouse_and_keyboard_and_can_be_kept(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page()
    pick(page, "labels", "vectors")
    page.check("#mix-on")
    page.get_by_label("Weight of labels").fill("0.7")
    slider = page.get_by_label("Weight of vectors")
    slider.fill("0.35")
    slider.press("ArrowLeft")
    ask(page, TEXT, LIST)
    spelled = "labels:0.7+vectors:0.3"
    expect(card(page, "weighted sum").locator(".meta")).to_contain_text(spelled)
    answer = client.post(f"/classify?adapter={spelled}", json={"inputs": TEXT}).json()
    wanted = [(row["label"], f"{100 * row['score']:.1f} %") for row in answer]
    assert bars(card(page, "weighted sum"), 0) == wanted
    assert bars(card(page, "weighted sum"), 1) == cosines(client, spelled, TEXT, LIST)
    assert wanted != bars(card(page, "labels"), 0)
    page.get_by_label("Name to keep the sum under").fill("summed")
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#mix-keep")).to_contain_text("summed is served")
    expect(page.locator("#try-picks")).to_contain_text("summed")
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#mix-keep")).to_contain_text("summed is served already")
    kept = client.post("/classify?adapter=summed", json={"inputs": TEXT}).json()
    assert [(row["label"], f"{100 * row['score']:.1f} %") for row in kept] == wanted
    page.uncheck("#mix-on")
    expect(card(page, "weighted sum")).to_have_count(0)
    client.delete("/adapters/summed")
