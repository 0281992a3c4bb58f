"""Settings: flags over variables, unknown ones refused by name, all of them documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.api.errors import HTTP_TYPES, TABLE
from app.settings import Settings, SettingsRefused, read_settings

ROOT = Path(__file__).parent.parent


def bert_lora(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bert_lora", *arguments]
    env = {**os.environ, **environ}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_unknown_variable_stops_the_start_and_names_the_nearest() -> None:
    done = bert_lora("serve", BERT_LORA_MAX_BATCH_TOKEN="5")
    assert done.returncode == 2
    assert "did you mean BERT_LORA_MAX_BATCH_TOKENS?" in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "many"), ("--device", "tpu"), ("--dtype", "int4")]
)
def test_an_impossible_value_stops_the_start_and_names_the_setting(flag: str, value: str) -> None:
    done = bert_lora("serve", flag, value)
    assert done.returncode == 2
    assert f"BERT_LORA_{flag.removeprefix('--').upper()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_base_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = bert_lora("serve", "--model", "./nowhere", "--store", str(tmp_path))
    assert done.returncode == 1
    assert "cannot start: the base's folder ./nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_LORA_PORT", "1")
    assert read_settings({"port": "2", "host": None}).port == 2
    assert read_settings({}).port == 1
    with pytest.raises(SettingsRefused, match="BERT_LORA_MODEL"):
        read_settings({}, {"BERT_LORA_MODLE": "x"})


def test_what_client_commands_read_stops_no_server_that_asks_for_keys() -> None:
    theirs = {"BERT_LORA_URL": "http://server", "BERT_LORA_API_KEY": "one"}
    assert read_settings({"api_keys": "one"}, theirs).port == 8080
    with pytest.raises(SettingsRefused, match="did you mean BERT_LORA_API_KEYS"):
        read_settings({}, theirs)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from bert_lora.cli import cli\n"
        "try: cli(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "--adapters-dir" in done.stdout


def test_every_setting_and_error_is_in_the_docs() -> None:
    settings = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"`BERT_LORA_{name.upper()}`" in settings, name
    documented = set(re.findall(r"`BERT_LORA_([A-Z0-9_]+)`", settings))
    assert documented == {name.upper() for name in Settings.model_fields}
    written = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "app/api").rglob("*.py"))
    raised = set(re.findall(r'Refusal\(\s*\d+,\s*"([a-z_]+)"', sources))
    for error_type in {kind for _, kind in TABLE.values()} | set(HTTP_TYPES.values()) | raised:
        assert f"`{error_type}`" in written, error_type


def test_the_command_serves_and_stops_on_sigterm(tmp_path: Path, tiny_bert: Path) -> None:
    command = [
        *(sys.executable, "-m", "bert_lora", "serve", "--port", "0"),
        *("--model", str(tiny_bert), "--store", str(tmp_path / "store")),
        *("--adapters-dir", str(tmp_path / "none"), "--log-format", "json"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        url = _wait_for_url(process)
        answer = httpx.post(f"{url}/embed", json={"inputs": "good"})
        assert len(answer.json()[0]) == 32
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def _wait_for_url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    end = time.monotonic() + 60
    while time.monotonic() < end:
        line = process.stderr.readline()
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            assert line.startswith("{")
            return found[0]
    raise TimeoutError("no address was logged")
