"""The command itself: its version, its completion, and what its start imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bert_lora.cli import COMMANDS, cli

ROOT = Path(__file__).parent.parent.parent


def test_every_command_has_a_help_of_its_own() -> None:
    for name in COMMANDS:
        done = CliRunner().invoke(cli, [name, "--help"])
        assert done.exit_code == 0, name
        assert f" {name} " in done.output.splitlines()[0]


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(cli, ["--version"])
    assert done.output.startswith("bert-lora 0.")


def test_a_command_that_is_none_is_named_and_ends_with_2() -> None:
    done = CliRunner().invoke(cli, ["srve"])
    assert (done.exit_code, "srve" in done.output) == (2, True)


def test_a_shell_completes_the_commands() -> None:
    """As bash asks once completion is installed."""
    asked = {
        "_BERT_LORA_COMPLETE": "complete_bash",
        "COMP_WORDS": "bert-lora ce",
        "COMP_CWORD": "1",
    }
    code = "from bert_lora.cli import cli; cli(prog_name='bert-lora')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["certify"], done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["serve", "--help"]])
def test_a_light_command_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from bert_lora.cli import cli\n"
        f"try: cli({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'fastapi', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("said", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_openmps_threads_are_told_to_sleep_before_torch_is_there(
    said: dict[str, str], spins: str
) -> None:
    code = (
        "import os, sys\n"
        "from bert_lora.cli import cli\n"
        "try: cli(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    quiet = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet | said
    )
    assert done.stdout.splitlines()[-1] == f"{spins} False", done.stderr
