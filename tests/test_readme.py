"""The README's curl lines work as pasted, on a clone's own adapters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Serve

ROOT = Path(__file__).parent.parent
BLOCKS = [
    block
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if "curl" in block
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_curl_line_works_as_pasted(serve: Serve) -> None:
    server = serve(adapters_dir=ROOT / "adapters")
    assert len(BLOCKS) >= 2
    for block in BLOCKS:
        script = 'set -euo pipefail\ncurl() { command curl --fail-with-body -w "\\n" "$@"; }\n'
        script += block.replace("localhost:8080", server.url.removeprefix("http://"))
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for line in filter(None, done.stdout.splitlines()):
            json.loads(line)


def test_the_shipped_adapters_are_small_and_have_cards() -> None:
    folders = [p for p in (ROOT / "adapters").iterdir() if p.is_dir()]
    assert {p.name for p in folders} == {"banking77", "clinc150", "rerank", "sentiment"}
    weights = [p / "adapter_model.safetensors" for p in folders]
    assert sum(w.stat().st_size for w in weights) < 6_000_000
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        for word in ("Data", "Licence", "Command", "Seed", "Result"):
            assert f"**{word}**" in card, (folder.name, word)
