"""The command bert-lora, also on a card that is lent with an older torch than ours."""

from __future__ import annotations

from app.cli import cli
from benchmarks.gpu import older_torch  # noqa: F401  it adapts at import

if __name__ == "__main__":
    cli()
