"""The command bert-lora, also on a card that is lent with an older torch than ours."""

from __future__ import annotations

from benchmarks.gpu import older_torch  # noqa: F401  it adapts at import
from bert_lora.cli import cli

if __name__ == "__main__":
    cli()
