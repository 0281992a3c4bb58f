"""What a config says was trained, against what the file holds: a lost tensor is not served as zero.

PEFT saves every layer that it targets, so one that is missing means half a file. Only layers inside
the encoder's stack count: a model trained for classification may have had no pooler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import regex

from app.adapters.base_shape import BaseShape
from app.adapters.config import PATTERN_TIMEOUT_S
from app.adapters.upload import AdapterRejected, Problem

IN_STACK = re.compile(r"(^|\.)\d+\.")


def missing_targets(
    targets: str | Sequence[str] | None, base: BaseShape, present: Collection[str]
) -> list[Problem]:
    """targets: LoraConfig.target_modules. A problem for each targeted layer that is not `present`.

    Source of the matching: peft.tuners.tuners_utils.check_target_module_exists. Raises
    AdapterRejected for an expression that is none, or takes too long.
    """
    if targets is None:
        return []
    return [
        Problem("is targeted by the config, but has no tensors in the file", path)
        for path in base.linears
        if path not in present and IN_STACK.search(path) and _targeted(targets, path, base.prefix)
    ]


def _targeted(targets: str | Sequence[str], path: str, prefix: str) -> bool:
    spellings = (path, f"{prefix}.{path}")
    if not isinstance(targets, str):
        return any(s == t or s.endswith(f".{t}") for t in targets for s in spellings)
    if targets == "all-linear":
        return True
    try:
        return any(regex.fullmatch(targets, s, timeout=PATTERN_TIMEOUT_S) for s in spellings)
    except regex.error as error:
        raise AdapterRejected(f"target_modules is no expression: {error}") from None
    except (TimeoutError, MemoryError, OverflowError, RecursionError):
        raise AdapterRejected("target_modules takes too long to match") from None
