"""How smoothly the page draws 2,000 texts: the longest frame while they move from the base to the adapter.

    python -m benchmarks.page --url http://127.0.0.1:8080 --adapter banking77 --texts texts.csv

texts.csv: a text a line, or a CSV with a label column. The server is one that runs already. Needs Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

FRAMES = """() => new Promise((resolve) => {
  const slider = document.getElementById('map-slider');
  const gaps = [];
  let before = 0;
  document.getElementById('map-play').click();
  const look = (now) => {
    if (before) gaps.push(now - before);
    before = now;
    if (slider.value < 100) requestAnimationFrame(look); else resolve(gaps);
  };
  requestAnimationFrame(look);
})"""
LONG_TASKS = """new PerformanceObserver((list) => (window.blocked ??= []).push(
  ...list.getEntries().map((e) => e.duration))).observe({type: 'longtask', buffered: true})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(LONG_TASKS)
        page.goto(f"{options.url}/#/map")
        page.locator("#map-adapter option").first.wait_for(state="attached")
        page.set_input_files("#map-file", options.texts)
        page.select_option("#map-adapter", options.adapter)
        began = time.perf_counter()
        page.get_by_role("button", name="Draw").click()
        page.locator("#map-drawn:not([hidden])").wait_for(timeout=600_000)
        drawn_s = time.perf_counter() - began
        page.wait_for_timeout(10_000)  # the worker compares all texts with each other
        print(page.locator("#map-status").text_content())
        gaps = sorted(page.evaluate(FRAMES))
        blocked = page.evaluate("window.blocked ?? []")
        print(f"drawn after {drawn_s:.1f} s; {len(gaps)} frames, median {gaps[len(gaps) // 2]:.1f} ms, "
              f"p95 {gaps[int(0.95 * len(gaps))]:.1f} ms, longest {gaps[-1]:.1f} ms; "
              f"longest block of the page's thread {max(blocked, default=0):.0f} ms")  # fmt: skip
        browser.close()


if __name__ == "__main__":
    main()
