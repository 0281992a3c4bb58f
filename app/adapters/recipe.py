"""How an upload's tensors are to be read: scales, ranks, switches. Made by read_recipe.py.

Knows no file and no method's formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.adapters.patterns import Patterns
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.sentence import Pooling, Sentence
from app.adapters.values import ProblemType, Scaling, Scores, Task

PROBLEM_TYPES: dict[ProblemType, Scores] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}

Bias = Literal["none", "lora_only", "all"]
Init = Literal["pissa", "olora"]  # PEFT changes the base by them at load, always alike


@dataclass(frozen=True)
class Options:
    """What the uploader adds to the file, in the query."""

    alpha: float | None = None
    layout: str | None = None
    labels: tuple[str, ...] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    task: Task | None = None
    problem_type: ProblemType | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Targeting:
    """Which layers the config says were trained; None: it does not say. PEFT's own field names."""

    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How an upload's tensors are to be read; None: the files do not say.

    kind: PEFT's peft_type, a name in methods/table.py. configured: there is a config of PEFT's, so
    that what it does not switch on is off. given_scale: the query's, in place of a formula. rslora,
    dora, lora_bias, truncated (KaSA cut the base's smallest singular values off), blocks
    (BD-LoRA's), init (pissa or olora, where the base changes at load): LoRA's switches. numbers:
    what the method's formula reads.

    bias: which biases were trained; biases_saved: whether the PEFT that wrote the file saved those
    of lora_only. tokens: ids whose rows were trained. made_for, made_for_type: the base's name, and
    its model_type. assumed: what the files leave open, in words. problems: what cannot be served;
    such a recipe is used only to find what else is wrong.
    """

    kind: str = "LORA"
    configured: bool = False
    alpha: float | None = None
    given_scale: float | None = None
    rank: int | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    dora: bool = False
    lora_bias: bool = False
    bias: Bias = "none"
    biases_saved: bool = True
    init: Init | None = None
    blocks: int | None = None
    truncated: bool = False
    tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    targeting: Targeting = field(default_factory=Targeting)
    layout: str | None = None
    task: Task | None = None
    task_of_class: Task | None = None
    labels: tuple[str, ...] | None = None
    problem_type: ProblemType | None = None
    sentence: Sentence = field(default_factory=Sentence)
    model_config: Mapping[str, Any] = field(default_factory=dict)
    made_for: str | None = None
    made_for_type: str | None = None
    problems: tuple[Problem, ...] = ()
    assumed: tuple[str, ...] = ()
    patterns: Patterns = field(default_factory=Patterns)

    def scaling(self, path: str, rank: int) -> Scaling:
        """alpha / r, or alpha / sqrt(r) with rsLoRA; alpha_pattern's first match wins.

        path: the module's path as the file spells it. Raises AdapterRejected where neither alpha
        nor a scale is given, and where they disagree. Source:
        peft.tuners.lora.layer.LoraLayer.update_layer.
        """
        alpha: float | None = self._by_pattern(self.alpha_pattern, path, self.alpha)
        if alpha is None and self.given_scale is not None:
            return Scaling("the query's scale", self.given_scale)
        if alpha is None:
            raise AdapterRejected(
                "alpha is not in the file: send adapter_config.json along, or in the query "
                "?alpha=16 (the scale is alpha / r then) or ?scale=2 outright"
            )
        formula = "alpha / sqrt(r)" if self.rslora else "alpha / r"
        scale = alpha / (math.sqrt(rank) if self.rslora else float(rank))
        if self.given_scale is not None and not math.isclose(scale, self.given_scale, rel_tol=1e-6):
            raise AdapterRejected(
                f"the query says scale={self.given_scale:g}, and the adapter's own config "
                f"{formula} = {scale:g} for {path} (alpha {alpha:g}, r {rank}): leave one out"
            )
        return Scaling(formula, scale, alpha, rank)

    def expected_rank(self, path: str) -> int | None:
        """The rank that the config gives this module, or None. Raises AdapterRejected."""
        rank: int | None = self._by_pattern(self.rank_pattern, path, self.rank)
        return rank

    def _by_pattern(self, patterns: Mapping[str, Any], path: str, default: Any) -> Any:
        """The value of the first pattern that matches from the start of the path's last parts.

        Source: peft.utils.other.get_pattern_key. Raises AdapterRejected.
        """
        for pattern, value in patterns.items():
            if self.patterns.match(rf"(.*\.)?({pattern})$", path):
                return value
        return default
