"""What a config says was trained, against what the file holds: a lost tensor is not served as zero.

PEFT saves every layer that it targets, so one that is missing means half a file. Only layers inside
the encoder's stack count: a model trained for classification may have had no pooler.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from app.adapters.base_shape import BaseShape
from app.adapters.config import Recipe
from app.adapters.patterns import matches
from app.adapters.upload import Problem

IN_STACK = re.compile(r"(^|\.)\d+\.")


def missing_targets(recipe: Recipe, base: BaseShape, present: Collection[str]) -> list[Problem]:
    """A problem for each layer that the recipe targets and that is not `present`.

    Source of the matching: peft.tuners.tuners_utils.check_target_module_exists. Raises
    AdapterRejected for an expression that is none, or takes too long.
    """
    if recipe.targets is None:
        return []
    return [
        Problem("is targeted by the config, but has no tensors in the file", path)
        for path in base.linears
        if path not in present and IN_STACK.search(path) and _targeted(recipe, path, base.prefix)
    ]


def _targeted(recipe: Recipe, path: str, prefix: str) -> bool:
    targets, spellings = recipe.targets or (), (path, f"{prefix}.{path}")
    if not isinstance(targets, str):
        return any(s == t or s.endswith(f".{t}") for t in targets for s in spellings)
    return targets == "all-linear" or any(
        matches(f"({targets})$", s, recipe.deadline_s) for s in spellings
    )
