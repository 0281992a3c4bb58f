"""docs/client.md and docs/cli.md name every call, command, exit code and error.

Their examples run in tests/test_examples.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bert_lora
from bert_lora.cli import COMMANDS, cli
from bert_lora.cli.connection import INTERRUPTED, NO_ANSWER, REFUSED, WRONG_USE

ROOT = Path(__file__).parent.parent.parent
CLIENT = (ROOT / "docs/client.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def test_every_command_code_and_error_is_in_the_docs() -> None:
    for name in COMMANDS:
        assert f"`{name}`" in CLI or f"`{name} " in CLI, name
    for code in (REFUSED, WRONG_USE, NO_ANSWER, INTERRUPTED):
        assert f"| {code} |" in CLI
    for name in set(bert_lora.__all__) - {"Local"}:
        assert f"`{name}`" in CLIENT or f"bert_lora.{name}" in CLIENT, name
    for name in dir(bert_lora.Client):
        assert name.startswith("_") or name in ("each", "close") or f"`{name}(" in CLIENT, name


@pytest.mark.parametrize("command", ["embed", "classify", "rerank"])
def test_every_long_option_of_the_docs_is_one(command: str) -> None:
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(cli, [command, "--help"]).output))
    for option in ("--column", "--field", "--format", "--resume", "--progress", "--local"):
        assert option in CLI
        assert option in known
