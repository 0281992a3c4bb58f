"""What an upload says about itself: adapter_config.json, config.json, file metadata, the query.

Every field of PEFT 0.21's LoraConfig is honoured, known to change nothing at inference, or refused
by name. Where a tensor goes is read from its name (layouts.py); how it is scaled, from here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from app.adapters.adapter import Pooling, Scores, Task
from app.adapters.fields import Fields
from app.adapters.patterns import PATTERNS_S, matches
from app.adapters.upload import AdapterRejected, Problem

SHORTEST_LENGTH = 8  # the special tokens of a pair, and something to say

# Only how the adapter was trained, or where: the tensors' names say that better.
NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules",
}  # fmt: skip
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
HONOURED = {
    "alpha", "alpha_pattern", "id2label", "init_lora_weights", "label2id", "labels", "layout",
    "lora_alpha", "max_length", "normalize", "peft_type", "pooling", "problem_type", "r",
    "rank_pattern", "task", "task_type", "use_rslora",
}  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")
TASKS: dict[str | None, Task | None] = {
    None: None,
    "SEQ_CLS": "classify",
    "FEATURE_EXTRACTION": "embed",
}
OFF: tuple[Any, ...] = (None, False, "", [], {}, "none", 0)
LAYOUTS = ("peft", "tutorial", "tutorial-swapped")
ACTIVATIONS: dict[str | None, Scores] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


@dataclass(frozen=True)
class Options:
    """What the uploader says beside the file, in the query."""

    alpha: float | None = None
    layout: str | None = None
    labels: tuple[str, ...] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    task: Task | None = None


@dataclass(frozen=True)
class Recipe:
    """How an upload's tensors are to be read; None: not said."""

    alpha: float | None = None
    rank: int | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layout: str | None = None
    task: Task | None = None
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    targets: str | tuple[str, ...] | None = None
    model_type: str | None = None
    made_for: str | None = None
    deadline_s: float = math.inf

    def scale(self, path: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA; alpha_pattern's first match wins.

        path: the module's path as the file spells it. Raises AdapterRejected where alpha is
        nowhere said. Source: peft.tuners.lora.layer.LoraLayer.update_layer.
        """
        alpha: float | None = self._by_pattern(self.alpha_pattern, path, self.alpha)
        if alpha is None:
            raise AdapterRejected(
                "alpha is not in the file: send adapter_config.json along, or ?alpha=16 in the query"
            )
        return alpha / (math.sqrt(rank) if self.rslora else float(rank))

    def expected_rank(self, path: str) -> int | None:
        """The rank that the config gives this module; None where it says none."""
        rank: int | None = self._by_pattern(self.rank_pattern, path, self.rank)
        return rank

    def _by_pattern(self, patterns: Mapping[str, Any], path: str, default: Any) -> Any:
        """The value of the first pattern that matches from the start of the path's last parts.

        Source: peft.utils.other.get_pattern_key. Raises AdapterRejected.
        """
        found = (
            v for p, v in patterns.items() if matches(rf"(.*\.)?({p})$", path, self.deadline_s)
        )
        return next(found, default)


def read_recipe(
    config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    metadata: Mapping[str, str],
    options: Options,
) -> Recipe:
    """Put together adapter_config.json, config.json, the file's metadata and the query.

    Raises AdapterRejected with every field that would change the mathematics and is not served,
    and for sources that disagree.
    """
    fields = {**_from_metadata(metadata), **config}
    problems = list(_unserved(fields))
    read = Fields(fields, problems)
    alpha = read.number("lora_alpha") if "lora_alpha" in fields else read.number("alpha")
    if options.alpha is not None and alpha is not None and alpha != options.alpha:
        problems.append(Problem(f"the query says alpha={options.alpha:g}, the upload {alpha:g}"))
    layout = options.layout or read.one_of("layout", LAYOUTS)
    task = read.one_of("task", get_args(Task)) or TASKS.get(_text(fields.get("task_type")))
    labels = options.labels or _labels(fields, model_config, problems)
    recipe_fields: dict[str, Any] = {
        "alpha": options.alpha if options.alpha is not None else alpha,
        "rank": read.integer("r"),
        "rslora": bool(fields.get("use_rslora")),
        "rank_pattern": read.patterns("rank_pattern"),
        "alpha_pattern": read.patterns("alpha_pattern"),
        "layout": layout,
        "task": options.task or task,
        "labels": labels,
        "problem_type": fields.get("problem_type") or model_config.get("problem_type"),
        "pooling": options.pooling or read.one_of("pooling", get_args(Pooling)),
        "normalize": options.normalize
        if options.normalize is not None
        else read.boolean("normalize"),
        "max_length": read.integer("max_length", SHORTEST_LENGTH),
        "targets": _targets(fields),
        "model_type": _text(model_config.get("model_type")),
        "deadline_s": time.monotonic() + PATTERNS_S,
        "made_for": _text(fields.get("base_model_name_or_path")),
    }
    if recipe_fields["problem_type"] not in (None, *ACTIVATIONS):
        problems.append(Problem(f"problem_type {recipe_fields['problem_type']!r} is not known"))
    if problems:
        raise AdapterRejected("the adapter's configuration cannot be served", problems)
    return Recipe(**recipe_fields)


def scores_of(recipe: Recipe, labels: int) -> Scores:
    """softmax; sigmoid for multi-label; none for regression, which one label alone means."""
    if recipe.problem_type is None:
        return "none" if labels == 1 else "softmax"
    return ACTIVATIONS[recipe.problem_type]


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The file's own __metadata__: only fields that a config could hold; values as JSON or text."""
    fields: dict[str, Any] = {}
    for name, text in metadata.items():
        if name in HONOURED or name in REFUSED_BY_NAME:
            try:
                fields[name] = json.loads(text)
            except (ValueError, RecursionError):
                fields[name] = text
    if isinstance(fields.get("labels"), str):
        fields["labels"] = fields["labels"].split(",")
    return fields


REFUSED_BY_NAME = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on lora_B",
    "bias": "trained biases (bias=lora_only or all)",
    "trainable_token_indices": "trained token rows",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "use_qalora": "QA-LoRA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron layers",
}


def _unserved(fields: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for name, value in fields.items():
        if name in NO_EFFECT or name in HONOURED or value in OFF:
            continue
        what = REFUSED_BY_NAME.get(name, "a field this server does not know")
        problems.append(Problem(f"{name}={value!r:.60}: {what}; it is not served"))
    kind = fields.get("peft_type")
    if kind not in (None, "LORA"):
        problems.append(Problem(f"peft_type {kind!r:.40} is not served; LORA is"))
    init = fields.get("init_lora_weights")
    if init not in PLAIN_INITS:
        problems.append(
            Problem(
                f"init_lora_weights={init!r:.40} changes the base's weights at load: convert the "
                "adapter with save_pretrained(path_initial_model_for_weight_conversion=…)"
            )
        )
    if fields.get("task_type") not in tuple(TASKS):
        problems.append(Problem(f"task_type {fields['task_type']!r:.40} is not served"))
    return problems


def _targets(fields: Mapping[str, Any]) -> str | tuple[str, ...] | None:
    """target_modules, where nothing narrows it to some of the layers that it matches."""
    if any(fields.get(name) for name in NARROWING) or fields.get("layers_to_transform") == 0:
        return None
    value = fields.get("target_modules")
    if isinstance(value, str):
        return value
    return tuple(map(str, value)) if isinstance(value, list) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _labels(
    fields: Mapping[str, Any], model_config: Mapping[str, Any], problems: list[Problem]
) -> tuple[str, ...] | None:
    """labels, or id2label in order of id; the adapter's own config before config.json."""
    if isinstance(fields.get("labels"), list):
        return tuple(str(label) for label in fields["labels"])
    for source in (fields, model_config):
        by_id = source.get("id2label")
        if not by_id:
            continue
        try:
            ordered = {int(i): str(label) for i, label in by_id.items()}
        except (AttributeError, ValueError, TypeError):
            problems.append(Problem("id2label is not a map from id to label"))
            return None
        if sorted(ordered) != list(range(len(ordered))):
            problems.append(Problem("id2label does not number its labels 0, 1, 2, …"))
            return None
        return tuple(ordered[i] for i in range(len(ordered)))
    return None
