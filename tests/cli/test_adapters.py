"""push, ls, show, rm, merge, unmerge and rollback, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.client.conftest import Served
from tests.conftest import Serve


def test_an_adapter_is_pushed_listed_shown_and_removed(run: Run, served: Served) -> None:
    done = run("push", served.folders["labels"], "mine")
    assert done.code == 0, done.err
    assert done.out.startswith("mine@")
    assert "2 labels" in done.out
    assert "LABEL_0" in done.err  # a warning: nothing names them
    again = run("push", served.folders["labels"], "mine", "--labels", "no,yes", "--json")
    assert json.loads(again.out)["labels"] == ["no", "yes"]
    table = run("ls").out.splitlines()
    assert table[0].split()[:3] == ["NAME", "VERSION", "TASK"]
    assert [line.split()[0] for line in table[1:]] == sorted([*served.folders, "mine"])
    shown = json.loads(run("show", "mine").out)
    assert [version["current"] for version in shown["versions"]] == [False, True]
    assert run("merge", "mine").out.strip().endswith("merged")
    assert json.loads(run("ls", "--json").out)[1]["merged"]
    assert "merged" not in run("unmerge", "mine").out
    assert shown["versions"][0]["version"][:12] in run("rollback", "mine").out
    assert run("rm", "mine").code == 0
    assert run("show", "mine").code == 1


def test_the_name_of_a_folder_is_the_adapters(run: Run, served: Served) -> None:
    done = run("push", served.folders["tuned"], "--dry-run")
    assert done.out.startswith("tuned@")
    assert "dry_run" in done.out


def test_what_is_refused_ends_with_1_and_says_why(run: Run, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    done = run("push", tmp_path, "broken")
    assert done.code == 1
    assert "adapter_rejected" in done.err
    done = run("rm", "nobody")
    assert (done.code, "nobody" in done.err) == (1, True)


def test_the_key_comes_from_the_environment(
    serve: Serve, tiny_bert: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(model=str(tiny_bert), api_keys="one").url
    assert run("ls", "--url", url).code == 1
    monkeypatch.setenv("BERT_LORA_API_KEY", "one")
    assert run("ls", "--url", url).code == 0
    assert run("ls", "--url", url, "--api-key", "two").code == 1


def test_a_light_command_starts_light(served: Served) -> None:
    code = (
        "import sys\n"
        "from bert_lora.cli import cli\n"
        f"try: cli(['ls', '--url', {served.live.url!r}])\n"
        "except SystemExit as end: print(end.code)\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr
