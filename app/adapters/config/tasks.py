"""What an adapter is for: what it says, else what only one reading of its file can mean.

BERT, ALBERT, Nomic BERT, GTE and ModernBERT have one head for texts and for words, so that its
tensors do not tell.
Knows no mathematics and builds no head (heads.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import assert_never

from app.adapters.base import HEAD_PATHS, Base
from app.adapters.heads import POOLERS, SEQUENCE_HEADS, TOKEN_HEADS, HeadKeys
from app.adapters.layouts import Parts
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.targets import is_target
from app.adapters.values import Task

IOB = re.compile(r"O|[BIESLU]-.+")
INSIDE = re.compile(r"[BI]-.+")
READ_AS: dict[Task, str] = {
    "classify": "a classifier of texts",
    "tokens": "a classifier of words",
    "embed": "no classifier",
}


class HeadUntold(AdapterRejected):
    """A head that may be for texts or for words, and nothing says for which."""


@dataclass(frozen=True)
class Purpose:
    """What an adapter is for. assumed: why it is taken for this, where nothing says so.

    untold: nothing tells; "classify" stands for it until the rest of the file has been checked.
    """

    task: Task
    assumed: str | None = None
    untold: bool = False


def purpose_of(parts: Parts, recipe: Recipe, base: Base) -> Purpose:
    """The query's task, the config's, that of the trained class, or what the file tells."""
    if recipe.task in ("classify", "tokens"):
        return Purpose(recipe.task)
    in_file = any(path in parts.modules for path in HEAD_PATHS)
    hint = recipe.task_of_class if recipe.task is None else None
    if hint is not None and (in_file or _base_has(hint, base)):
        return Purpose(hint)
    if in_file:
        return _by_layout(parts, recipe, base)
    own = base.classifier.task if base.classifier and recipe.task is None else None
    with_head = any(path.startswith(f"{base.prefix}.") for path in parts.modules)
    if own is None or not with_head or not _base_has(own, base):
        return Purpose("embed")
    why = "the base is one, and the adapter was trained on a model with a head"
    return Purpose(own, _assumption(own, why, "?task=embed makes it answer /embed alone"))


def refuse_untold(parts: Parts) -> None:
    """Raises HeadUntold, saying the ways out."""
    reason = "is a head's, and a head for texts and one for words have the same tensors here"
    raise HeadUntold(
        "the file holds a head, and nothing says whether it labels texts or words: say "
        "?task=classify or ?task=tokens, task_type SEQ_CLS or TOKEN_CLS in adapter_config.json, or "
        "send a config.json with the architectures that it was trained as",
        [Problem(reason, parts.names.get(("classifier", "weight"), parts.name("classifier")))],
    )


def _by_layout(parts: Parts, recipe: Recipe, base: Base) -> Purpose:
    """Where the two heads of an architecture have different layers, those that are there tell."""
    texts, words = SEQUENCE_HEADS[base.model_type], TOKEN_HEADS[base.model_type]
    own = {path for path in _layers(texts) if path in parts.modules} - _layers(words)
    if own:
        return Purpose("classify")
    if texts.out != words.out:
        return Purpose("tokens")
    lacking = sorted(_layers(texts) - _layers(words))
    if lacking and not all(f"{path}.weight" in base.head for path in lacking):
        why = f"a head for texts would need {', '.join(lacking)}, and neither file nor base has it"
        return Purpose("tokens", _assumption("tokens", why))
    return _by_evidence(parts, recipe, base)


def _by_evidence(parts: Parts, recipe: Recipe, base: Base) -> Purpose:
    """One head for both: only what else the file or its config holds can tell."""
    pooler = POOLERS.get(base.model_type)
    spelled = base.spellings(pooler) if pooler else ()
    evidence: list[tuple[Task, bool, str]] = [
        ("classify", any(path in parts.modules for path in spelled), "its pooler was trained"),
        ("classify", recipe.problem_type is not None, "it has a problem_type"),
        ("tokens", bool(pooler) and not base.has_pooler, "neither file nor base has a pooler"),
        ("tokens", _misses_pooler(recipe, base), "the model that was trained had no pooler"),
        ("tokens", _are_spans(recipe.labels), "its labels are those of spans (B-, I-, O)"),
    ]
    if base.classifier and base.classifier.task:
        evidence.append((base.classifier.task, True, "the base is one"))
    for task, holds, why in evidence:
        if holds:
            return Purpose(task, _assumption(task, why))
    return Purpose("classify", untold=True)


def _assumption(task: Task, why: str, otherwise: str = "") -> str:
    """The assumption, for the answer to a PUT."""
    match task:
        case "classify":
            other = "?task=tokens makes it label words"
        case "tokens":
            other = "?task=classify makes it label texts"
        case "embed":
            other = "?task=classify or ?task=tokens says otherwise"
        case _:
            assert_never(task)
    return f"read as {READ_AS[task]}, since {why}: {otherwise or other}"


def _layers(keys: HeadKeys) -> set[str]:
    return {path for path in (keys.out, keys.dense, keys.norm) if path is not None}


def _base_has(task: Task, base: Base) -> bool:
    match task:
        case "classify":
            keys = SEQUENCE_HEADS[base.model_type]
        case "tokens":
            keys = TOKEN_HEADS[base.model_type]
        case "embed":
            return False
        case _:
            assert_never(task)
    return f"{keys.out}.weight" in base.head


def _misses_pooler(recipe: Recipe, base: Base) -> bool:
    """Would the config's method have changed a pooler? Called where the file has nothing of one.

    A model for texts has a pooler, one for words has none.
    """
    pooler = POOLERS.get(base.model_type)
    if pooler is None or not recipe.configured:
        return False
    path = base.spellings(pooler)[1]
    if recipe.bias == "all":
        return True
    return recipe.targeting.target_modules is not None and is_target(recipe, base, pooler, path)


def _are_spans(labels: tuple[str, ...] | None) -> bool:
    """Are these labels of spans of words, in IOB or a notation like it?"""
    named = labels or ()
    return all(map(IOB.fullmatch, named)) and any(map(INSIDE.fullmatch, named))
