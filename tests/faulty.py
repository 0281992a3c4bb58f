"""The server with a model that fails when it is asked to: `python -m tests.faulty serve`.

Sequences of certain token ids make the forward raise, run out of memory, hang or take SLOW_S; all
else is the server as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from app.model.encoder import Encoder
from app.model.sequence import Sequence
from bert_lora.cli import cli

CRASH = [2, 11, 11, 12, 3]
NO_MEMORY = [2, 12, 12, 11, 3]
HANG = [2, 13, 12, 13, 3]
SLOW, SLOW_S = [2, 13, 13, 12, 3], 6
POISON = [2, 12, 13, 11, 3]  # as a kernel that writes where it may not: for ever
POISONED = "CUDA error: an illegal memory access was encountered"

_run = Encoder.run
_poisoned = False


def run(
    self: Encoder, sequences: list[Sequence], between: Callable[[], None] = lambda: None
) -> list[torch.Tensor]:
    """Encoder.run, with faults."""
    global _poisoned  # noqa: PLW0603 - as the context is the process's
    asked = [sequence.ids for sequence in sequences]
    _poisoned = _poisoned or POISON in asked
    if _poisoned:
        raise torch.AcceleratorError(f"{POISONED}\nCompile with `TORCH_USE_CUDA_DSA`")
    if HANG in asked:
        threading.Event().wait()
    if SLOW in asked:
        threading.Event().wait(SLOW_S)
    if CRASH in asked:
        raise RuntimeError("a fault that was asked for")
    if NO_MEMORY in asked:
        raise torch.OutOfMemoryError("a fault that was asked for")
    return _run(self, sequences, between)


if __name__ == "__main__":
    Encoder.run = run  # type: ignore[method-assign]
    cli()
