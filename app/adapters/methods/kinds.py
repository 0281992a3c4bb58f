"""PEFT's methods: which are served, and what each field of their configs means here.

Every field is honoured, known to change nothing at inference, or refused by name. Source: the
config classes of PEFT 0.21 (peft/tuners/*/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Method = Literal[
    "LORA", "ADALORA", "LOHA", "LOKR", "IA3", "VERA", "FOURIERFT", "OFT", "LN_TUNING", "TRAINABLE_TOKENS"
]  # fmt: skip
SCALED_BY_QUERY: tuple[Method, ...] = ("LORA", "LOHA", "LOKR")  # whose scale is one free number

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
LORA_FIELDS = frozenset({
    "corda_config", "eva_config", "init_lora_weights", "kasa_config", "loftq_config", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config",
    "lora_alpha", "trainable_token_indices", "use_bdlora", "use_dora", "use_rslora",
})  # fmt: skip
REFUSED_BY_NAME = {
    "alora_invocation_tokens": "activated LoRA (aLoRA) acts on part of a text only",
    "arrow_config": "arrow routes each token through several adapters",
    "layer_replication": "layer replication builds another base",
    "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA keeps a sampler beside its matrices",
    "target_parameters": "LoRA on bare parameters; an encoder's are all in layers",
    "use_qalora": "QA-LoRA pools its input in groups of a quantised base",
    "velora_config": "VeLoRA keeps projections beside its matrices",
}
PROMPTS = "trained vectors before the text, which change no layer"
REFUSED_KINDS = {
    "PROMPT_TUNING": PROMPTS,
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": "trained keys and values before the text's own, which change no layer",
    "CPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": "trained prompts inside of a decoder's layers",
    "XLORA": "mixes several adapters token by token",
    "POLY": "mixes several adapters by task",
}


@dataclass(frozen=True)
class Kind:
    """numbers: fields that its formula reads, with PEFT's default, whose type is wanted.

    no_effect: its further fields that change nothing once it is trained.
    """

    numbers: Mapping[str, Any] = field(default_factory=dict)
    no_effect: frozenset[str] = frozenset()


KINDS: dict[Method, Kind] = {
    "LORA": Kind(no_effect=LORA_FIELDS),
    "ADALORA": Kind(
        {"init_r": 12},
        LORA_FIELDS | {"target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
                       "total_step"},
    ),
    "LOHA": Kind(no_effect=frozenset({"alpha", "rank_dropout", "module_dropout", "use_effective_conv2d"})),
    "LOKR": Kind(
        {"decompose_both": False},
        frozenset({"alpha", "rank_dropout", "module_dropout", "use_effective_conv2d",
                   "decompose_factor", "rank_dropout_scale"}),
    ),
    "IA3": Kind(no_effect=frozenset({"feedforward_modules", "init_ia3_weights"})),
    "VERA": Kind(
        {"projection_prng_key": 0, "save_projection": True},
        frozenset({"vera_dropout", "d_initial"}),
    ),
    "FOURIERFT": Kind(
        {"random_loc_seed": 777, "scaling": 150.0}, frozenset({"n_frequency", "n_frequency_pattern"})
    ),
    "OFT": Kind(
        {"coft": False, "eps": 6e-5, "block_share": False, "use_cayley_neumann": True,
         "num_cayley_neumann_terms": 5},
        frozenset({"oft_block_size", "module_dropout"}),
    ),
    "LN_TUNING": Kind(),
    "TRAINABLE_TOKENS": Kind(no_effect=frozenset({"token_indices"})),
}  # fmt: skip


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


def why_not(kind: object) -> str:
    """Why adapters of this peft_type, which is no Method, are not served."""
    reason = REFUSED_KINDS.get(str(kind), f"served are {', '.join(KINDS)}")
    return f"peft_type {kind!r:.40} is not served: {reason}"


def unserved_field(kind: Method, name: str, value: Any, *, configured: bool = True) -> str | None:
    """Why a field of this kind's config cannot be served; None: it can.

    configured: it is PEFT's config, and not a few fields beside a file.
    """
    known = KINDS[kind]
    if name == "alpha" and not configured:
        return None
    if name in EVERYWHERE or name in known.numbers or name in known.no_effect:
        return None
    if any(value is off or (value == off and type(value) is type(off)) for off in OFF):
        return None
    what = REFUSED_BY_NAME.get(name, "a field this server does not know")
    return f"{name}={value!r:.60}: {what}; it is not served"
