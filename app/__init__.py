"""The server: one frozen BERT encoder, any number of LoRA adapters."""

import os

# Before torch's first product: MKL's bits would depend on where its operands lie in memory, and
# so on an input's neighbours. See docs/decisions/0002-bits-that-ignore-the-batch.md.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
