"""The client's server, and the command as typed in a shell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from bert_lora.cli import cli
from tests.client.conftest import Served, folders, served  # noqa: F401  fixtures


@dataclass(frozen=True)
class Done:
    """What a command gave. err: stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(served: Served, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """run("ls", stdin=…): against the server."""
    monkeypatch.setenv("BERT_LORA_URL", served.live.url)

    def typed(*arguments: object, stdin: str | bytes | None = None) -> Done:
        done = CliRunner().invoke(cli, [str(a) for a in arguments], input=stdin)
        return Done(done.exit_code, done.stdout, done.stderr)

    return typed
