"""Map: its vectors are the API's, its plane is numpy's, its neighbours are the cosines."""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.oracles import sentences
from tests.page.conftest import HOSTILE, Open

TEXTS = [*sentences(150, seed=4), f'it said "{HOSTILE}", and\nno more']
LABELS = [("card", "film", HOSTILE)[i % 3] for i in range(len(TEXTS))]


def table() -> str:
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text", "intent"], *[(i, t, label) for i, (t, label) in enumerate(zip(TEXTS, LABELS, strict=True))]])  # fmt: skip
    return out.getvalue()


def drawn(page: Page, text: str, adapter: str) -> None:
    page.fill("#map-text", text)
    page.select_option("#map-adapter", adapter)
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#map-progress")).to_be_hidden()
    expect(page.locator("#map-drawn")).to_be_visible()


def vectors(client: httpx.Client, adapter: str, texts: list[str]) -> Any:
    answer = client.post(f"/embed?adapter={adapter}", json={"inputs": texts})
    return np.array(answer.json(), dtype=np.float64)


def agreement(rows: Any) -> float:
    """The share of texts whose nearest other one has the same label."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -2)
    return float(np.mean([LABELS[i] == LABELS[int(j)] for i, j in enumerate(scores.argmax(1))]))


def test_a_table_is_read_drawn_and_told_of(open_page: Open, client: httpx.Client) -> None:
    page = open_page("map")
    drawn(page, table(), "vectors")
    assert page.locator("#map-text-column").input_value() == "1"
    assert page.locator("#map-label-column").input_value() == "2"
    status = page.locator("#map-status")
    expect(status).to_contain_text("151 texts")
    shares = [agreement(vectors(client, name, TEXTS)) for name in ("base", "vectors")]
    expected = f"base {100 * shares[0]:.1f} %, vectors {100 * shares[1]:.1f} %"
    expect(status).to_contain_text(f"The nearest text has the same label: {expected}")
    expect(page.locator("#map-legend button")).to_have_text(sorted(set(LABELS)))
    painted = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert page.locator("#map-canvas").evaluate(painted) > 10


def test_the_keys_go_from_dot_to_dot_and_enter_shows_the_neighbours_by_both(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page("map")
    texts = [text.replace("\n", " ") for text in TEXTS]
    drawn(page, "\n".join(texts), "vectors")
    expect(page.locator("#map-columns")).to_be_hidden()
    canvas, at = page.locator("#map-canvas"), page.locator("#map-at")
    canvas.focus()
    canvas.press("ArrowRight")
    expect(at).to_have_text(texts[0])
    canvas.press("ArrowRight")
    expect(at).not_to_have_text(texts[0])
    here = texts.index(at.text_content() or "")
    canvas.press("Enter")
    for name in ("base", "vectors"):
        rows = vectors(client, name, texts)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        scores = unit @ unit[here]
        scores[here] = -2
        order = np.argsort(-scores)[:10]
        near = page.get_by_role("article", name=f"Nearest by {name}").locator(".near button")
        shown = near.evaluate_all("all => all.map(b => [...b.children].map(c => c.textContent))")
        assert [float(score) for score, _ in shown] == pytest.approx(scores[order], abs=6e-4)
        assert shown[0][1] == texts[int(order[0])]
    near.first.click()
    expect(at).to_have_text(shown[0][1])


def test_the_mouse_finds_a_dot_and_the_slider_moves_them(open_page: Open) -> None:
    page = open_page("map")
    drawn(page, "\n".join(sentences(40, seed=9)), "vectors")
    canvas = page.locator("#map-canvas")
    canvas.focus()
    canvas.press("ArrowRight")
    tip = page.locator("#map-tip")
    expect(tip).to_be_visible()
    text = tip.text_content()
    box, tipped = canvas.bounding_box(), tip.bounding_box()
    assert box is not None and tipped is not None
    right = tip.evaluate("t => t.style.right === 'auto'")
    x = tipped["x"] - 10 if right else tipped["x"] + tipped["width"] + 10
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    expect(tip).to_be_hidden()
    page.mouse.move(x, tipped["y"] - 10)
    expect(tip).to_have_text(text or "")
    page.mouse.click(x, tipped["y"] - 10)
    expect(page.locator("#map-near article")).to_have_count(2)
    picture = "c => c.toDataURL()"
    before = canvas.evaluate(picture)
    page.locator("#map-slider").focus()
    page.keyboard.press("End")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert canvas.evaluate(picture) != before
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#map-slider")).to_have_value("100")


def test_what_is_fetched_can_be_stopped(open_page: Open) -> None:
    page = open_page("map")
    page.route("**/embed*", lambda route: None)
    page.fill("#map-text", "\n".join(sentences(10)))
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#map-status")).to_have_text("Stopped.")
    expect(page.locator("#map-progress")).to_be_hidden()


def test_the_plane_holds_as_much_as_the_two_principal_axes(open_page: Open) -> None:
    page = open_page("map")
    rng = np.random.default_rng(5)
    scales = np.array([6, 4, 3.6, *np.linspace(2, 0.1, 29)])
    ends = [(rng.normal(size=(200, 32)) * scales + 3).astype(np.float32) for _ in range(2)]
    code = """async ({ends, width}) => {
      const {project} = await import('./page/pca.js');
      const {points, explained} = project(ends.map((rows) => Float32Array.from(rows)), width);
      return [explained, points.map(({x, y}) => [[...x], [...y]])];
    }"""
    given = {"ends": [rows.ravel().tolist() for rows in ends], "width": 32}
    explained, points = page.evaluate(code, given)
    centred = [rows - rows.mean(0) for rows in ends]
    both = np.concatenate(centred).astype(np.float64)
    axes = np.linalg.svd(both, full_matrices=False)[2][:2]
    best = ((both @ axes.T) ** 2).sum()
    got = sum((np.array(point) ** 2).sum() for point in points)
    assert 0.995 * best <= got <= 1.0001 * best
    for rows, share, point in zip(centred, explained, points, strict=True):
        assert share == pytest.approx((np.array(point) ** 2).sum() / (rows**2).sum(), rel=1e-4)
    x, y = np.concatenate(points, axis=1)
    assert abs(x @ y) < 1e-3 * (x @ x)
    assert x @ x >= y @ y


def test_tables_are_read_as_pythons_csv_reads_them(open_page: Open) -> None:
    page = open_page("map")
    rng = random.Random(7)
    cells = [
        "plain",
        'a "quoted" one',
        "a, comma",
        "two\nlines",
        "tab\there",
        "ü 🎬",
        HOSTILE,
        '"',
        "",
    ]
    for delimiter in (",", "\t", ";"):
        rows = [
            ["text", "label"],
            *[[rng.choice(cells) + "x", rng.choice(cells)] for _ in range(60)],
        ]
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerows(rows)
        read = page.evaluate(
            "async (text) => (await import('./page/csv.js')).read(text)", "\ufeff" + out.getvalue()
        )
        assert read == {"columns": rows[0], "rows": rows[1:]}, delimiter
    for plain in ("Hello, world.\nHow are you?", "one\ntwo, three\nfour", "a, b\n"):
        read = page.evaluate("async (text) => (await import('./page/csv.js')).read(text)", plain)
        assert read == {"columns": None, "rows": [[line] for line in plain.split("\n") if line]}
    lines = [{"text": "a", "label": 1}, {"text": "b"}]
    read = page.evaluate(
        "async (text) => (await import('./page/csv.js')).read(text)",
        "\n".join(map(json.dumps, lines)),
    )
    assert read == {"columns": ["text", "label"], "rows": [["a", "1"], ["b", ""]]}
