"""For a card that is lent with an older torch than ours: what it lacks, left out, and said.

Also a plugin, for the tests: pytest -p benchmarks.gpu.older_torch.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from torch.nn.attention import varlen


def adapt() -> list[str]:
    """What had to be left out, in words; nothing where torch is as ours."""
    lacks = []
    served = varlen.varlen_attn
    if "num_splits" not in inspect.signature(served).parameters:

        @wraps(served)
        def without(*args: Any, num_splits: int, **more: Any) -> Any:
            return served(*args, **more)

        varlen.varlen_attn = without
        lacks.append("varlen_attn without num_splits: a row's bits may follow its batch")
    return lacks


LACKS = adapt()
