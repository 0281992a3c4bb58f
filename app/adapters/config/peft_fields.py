"""What each field of PEFT's configs means here: honoured, without effect at inference, or refused.

What only one method has is in its own file (methods/). Source: the config classes of PEFT 0.21
(peft/tuners/*/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.adapters.methods.method import Method
from app.adapters.refusals import Problems

OFF: tuple[Any, ...] = (None, False, "", [], {}, 0)

# How the adapter was trained, or where it is: the tensors' names say that, and are checked against it.
EVERYWHERE = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_weights", "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type",
    "peft_version", "revision", "target_modules", "task_type", "bias", "rank_pattern",
    "alpha_pattern", "r", "layers", "ensure_weight_tying",
    # ours, beside PEFT's: from the query, the file's metadata or an embedding adapter's own config
    "default_prompt_name", "dimensions", "id2label", "label2id", "labels", "layout",
    "max_length", "normalize", "pooling", "problem_type", "prompts", "task",
})  # fmt: skip

# What a file's own __metadata__ may say, where there is no config: how to read it, not where.
METADATA = frozenset({
    "alpha", "alpha_pattern", "base_model_name_or_path", "default_prompt_name", "dimensions",
    "id2label", "labels", "layout", "lora_alpha", "max_length", "normalize", "pooling",
    "problem_type", "prompts", "rank_pattern", "task", "task_type", "use_rslora",
})  # fmt: skip

# Of these, what a config says better: its silence means PEFT's own default.
MATHEMATICS = frozenset({
    "alpha", "alpha_pattern", "base_model_name_or_path", "lora_alpha", "rank_pattern", "task_type",
    "use_rslora",
})  # fmt: skip


def check_fields(
    method: Method, config: Mapping[str, Any], problems: Problems, *, configured: bool
) -> None:
    """A problem for each field of the config that would change the mathematics and is not served.

    configured: it is PEFT's config, and not a few fields beside a file, which say alpha their own way.
    """
    allowed = EVERYWHERE.union(method.numbers, method.without_effect)
    allowed |= frozenset() if configured else {"alpha"}
    for name, value in config.items():
        if name not in allowed and not is_off(value):
            why = method.refused.get(name, "a field this server does not know")
            problems.add(f"{name}={value!r:.60}: {why}; it is not served")


def is_off(value: Any) -> bool:
    """Does the value switch a field off, whatever the field is?"""
    return any(value is off or (value == off and type(value) is type(off)) for off in OFF)
