"""Types that openapi-typescript makes from the server's own document, with openapi-fetch on them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, TEXTS, Server, assert_close

SOURCES = Path(__file__).parent / "typescript"
STRICT = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node"]


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm: apt-get install npm")
def test_the_main_calls(open_server: Server, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        return subprocess.run(
            words, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    for source in ("package.json", "main.ts"):
        shutil.copy(SOURCES / source, tmp_path)
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{open_server.url}/openapi.json").content)
    run("npm", "install", "--no-audit", "--no-fund", "--silent")
    # A member with a default may be left out.
    run(
        "npx",
        "openapi-typescript",
        "openapi.json",
        "--default-non-nullable",
        "false",
        "-o",
        "schema.ts",
    )
    run("npx", "tsc", *STRICT, "main.ts")
    folder = ROOT / "adapters" / "sentiment"
    told = json.loads(run("node", "main.js", open_server.url, str(folder)))
    assert_close(told["vectors"], open_server.vectors(TEXTS[:1], "sentiment"))
    assert_close(told["embedding"], open_server.vectors(TEXTS[:1], "sentiment")[0])
    expected = open_server.native("/classify?adapter=sentiment", {"inputs": TEXTS[0]})
    assert told["labels"] == expected
    assert (told["scale"], told["versions"]) == (2.0, [True])
    assert {"sentiment", "typed"} <= set(told["names"])
    assert told["refused"] == "adapter_not_found"
