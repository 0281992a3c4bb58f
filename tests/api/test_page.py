"""The page's files as a browser gets them. What it does in one is tests/page."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "app/page"
FILES = sorted(FOLDER.iterdir())
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MOST_BYTES = 100_000
MOST_LINES = 300


class Tags(HTMLParser):
    """Every tag with its attributes, and the text within scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def test_a_browser_gets_the_page_at_the_root_and_others_what_they_got(client: httpx.Client) -> None:
    page = client.get("/", headers=BROWSER)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["vary"] == "Accept"
    assert page.content == (FOLDER / "index.html").read_bytes()
    assert client.get("/").json()["name"] == "bert-lora-server"


def test_nothing_in_it_is_inline_or_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/", headers=BROWSER)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    page = parsed(answer.text)
    assert page.inline == ""
    for tag, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            if link := attributes.get(name):
                assert not re.match(r"/|\w+:", link), "it works below a proxy's prefix, too"


def test_each_file_that_it_names_is_there(client: httpx.Client) -> None:
    named = set(re.findall(r'"(page/[^"]+)"', (FOLDER / "index.html").read_text()))
    scripts = [path for path in FILES if path.suffix == ".js"]
    for path in scripts:
        named |= {f"page/{name}" for name in re.findall(r'"(?:\./)?(\w+\.js)"', path.read_text())}
    assert {Path(name).name for name in named} == {p.name for p in FILES} - {"index.html"}
    for name in named:
        assert client.get(name).status_code == 200, name
    assert client.get("/page/nothing.js").status_code == 404
    assert client.get("/page/..%2fmain.py").status_code == 404


def test_a_file_that_the_browser_has_is_not_sent_again(client: httpx.Client) -> None:
    for path, headers in (("/page/page.js", {}), ("/", BROWSER)):
        tag = client.get(path, headers=headers).headers["etag"]
        again = client.get(path, headers={**headers, "If-None-Match": f'W/{tag}, "x"'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert client.get(path, headers={**headers, "If-None-Match": '"x"'}).status_code == 200


def test_it_can_be_hidden(serve: Serve, tiny_bert: Path) -> None:
    client = serve(model=str(tiny_bert), page=False).client
    answer = client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert client.get("/page/page.js").status_code == 404


def test_below_an_adapters_prefix_a_browser_is_led_to_the_documentation(
    client: httpx.Client,
) -> None:
    for path in ("/a/x", "/a/x/"):
        assert client.get(path, headers=BROWSER).headers["location"] == "/docs"


def test_the_root_tells_what_a_key_may(serve: Serve, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("narrow-key adapters=b\n")
    keys = {"api_keys": "k3y", "api_keys_file": tmp_path / "keys", "admin_keys": "adm1n"}
    client = serve(model=str(tiny_bert), **keys).client

    def may(key: str) -> list[str]:
        answer: list[str] = client.get("/", headers={"Authorization": f"Bearer {key}"}).json()[
            "may"
        ]
        return answer

    assert client.get("/").json()["may"] == may("unknown") == []
    assert may("narrow-key") == ["ask"]
    assert may("k3y") == ["ask", "watch"]
    assert may("adm1n") == ["ask", "watch", "change"]


def test_without_keys_a_page_elsewhere_may_change_nothing(client: httpx.Client) -> None:
    assert client.get("/").json()["may"] == ["ask", "watch", "change"]
    elsewhere = {"Origin": "https://evil.example"}
    assert client.get("/", headers=elsewhere).json()["may"] == ["ask", "watch"]


def test_it_is_small_and_each_file_can_be_read() -> None:
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES
    for path in FILES:
        assert path.read_text().count("\n") <= MOST_LINES, path.name


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".js"], ids=lambda p: p.name)
def test_no_script_reads_markup_keeps_a_key_or_runs_a_text(path: Path) -> None:
    text = path.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser",
                 "eval(", "new Function", "localStorage", "sessionStorage", "cookie", "indexedDB"):  # fmt: skip
        assert word not in text, word


def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves a build folder beside what it builds
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "app", "bert_lora"):
        (source / name).symlink_to(ROOT / name)
    code = "from setuptools import build_meta; build_meta.build_wheel(r'%s')"
    command = [sys.executable, "-c", code % tmp_path]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in ran.stderr:
        pytest.skip("setuptools is not installed here: no wheel can be built")
    assert ran.returncode == 0, ran.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"app/page/{path.name}" for path in FILES} <= set(names)
