"""The short form of `make soak`."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_everything_at_once_for_a_while_gives_no_wrong_answer() -> None:
    command = [sys.executable, "-m", "tests.soak", "--seconds", "15"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "wrong: 0" in ran.stdout
