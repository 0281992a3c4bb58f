"""A server of a later version: its pointers have a format that is not known yet.

python -m tests.scale.newer serve
"""

from __future__ import annotations

from app.catalog import pointer
from bert_lora.cli import cli

pointer.FORMAT += 1

if __name__ == "__main__":
    cli()
