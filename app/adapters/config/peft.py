"""What PEFT's own config says of the training: which layers, tokens, start and switches.

Knows no method (methods/) and no tensor.
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from packaging.version import InvalidVersion, Version

from app.adapters.config.fields import Fields
from app.adapters.recipe import Bias, Init, Targeting
from app.adapters.refusals import AdapterRejected, Problem

PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")
PRINTED = re.compile(r"[\[{(]\s*(['\"])[\w.]+\1(\s*,\s*(['\"])[\w.]+\3)*\s*,?\s*[\])}]")
QUOTED = re.compile(r"['\"]([\w.]+)['\"]")
BIASES_SINCE = Version("0.21")
WRAPPED = "0.auto_model."  # how sentence-transformers' own model spells its encoder


def bias(fields: Fields) -> Bias:
    """Which biases were trained. Methods have their own lora_only: vera_only, oft_only, …"""
    value = fields.get("bias")
    if isinstance(value, str) and value.endswith("_only"):
        return "lora_only"
    trained: Bias | None = fields.one_of("bias", ("none", "all"))
    return trained or "none"


def biases_saved(fields: Fields) -> bool:
    """Did the PEFT that wrote it save what bias=lora_only trained?

    0.8 to 0.18 saved none, 0.21 all. It notes its version since 0.18.
    """
    try:
        return Version(str(fields.get("peft_version"))) >= BIASES_SINCE
    except InvalidVersion:
        return False


def init(fields: Fields) -> Init | None:
    """pissa or olora; None for a start of training that left the base alone."""
    value = fields.get("init_lora_weights")
    if any(value is plain or value == plain for plain in PLAIN_INITS):
        return None
    repeatable: tuple[Init, ...] = get_args(Init)
    for start in repeatable:
        if isinstance(value, str) and value.lower() == start:
            return start
    fields.problems.add(
        f"init_lora_weights={value!r:.40}: it was trained on a changed base, which no file holds: "
        "convert the adapter with save_pretrained(path_initial_model_for_weight_conversion=…)"
    )
    return None


def blocks(fields: Fields) -> int | None:
    """BD-LoRA's number of blocks; which matrix has them, its shape tells."""
    config = fields.get("use_bdlora")
    if not config:
        return None
    count = config.get("nblocks", 1) if isinstance(config, dict) else None
    if type(count) is not int or count < 1:
        fields.problems.add(f"use_bdlora={config!r:.60} does not say its nblocks")
        return None
    return count


def tokens(fields: Fields) -> Any:
    """trainable_token_indices: ids, or ids by embedding; TRAINABLE_TOKENS says token_indices."""
    value = fields.get("trainable_token_indices") or fields.get("token_indices")
    if not value:
        return None
    by_name = value if isinstance(value, dict) else {"": value}
    if not all(_are_integers(ids) for ids in by_name.values()):
        fields.problems.add(f"token indices {value!r:.60} are not lists of token ids")
        return None
    if isinstance(value, dict):
        return {str(name): tuple(ids) for name, ids in value.items()}
    return tuple(value)


def targeting(fields: Fields) -> Targeting:
    """Raises AdapterRejected for names that were printed into a text."""
    layers = fields.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    if layers is not None and not _are_integers(layers):
        fields.problems.add(f"layers_to_transform={layers!r:.60} are not layers' numbers")
        layers = None
    pattern = _names_or_expression(fields, "layers_pattern")
    return Targeting(
        _names_or_expression(fields, "target_modules"),
        _names_or_expression(fields, "exclude_modules"),
        _names(fields, "modules_to_save") or (),
        tuple(layers) if layers else None,
        (pattern,) if isinstance(pattern, str) else pattern or (),
    )


def trained_type(fields: Fields) -> str | None:
    """The model_type of the class that PEFT saw at training: auto_mapping names its module."""
    mapping = fields.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    path = library.split(".") if isinstance(library, str) else []
    if path[:2] != ["transformers", "models"] or len(path) < 3:
        return None
    return path[2].replace("_", "-")


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _names(fields: Fields, name: str) -> tuple[str, ...] | None:
    value = fields.get(name)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(v.removeprefix(WRAPPED) for v in value)
    if value not in (None, [], ""):
        fields.problems.add(f"{name}={value!r:.60} is not a list of names")
    return None


def _names_or_expression(fields: Fields, name: str) -> str | tuple[str, ...] | None:
    value = fields.get(name)
    if isinstance(value, str) and PRINTED.fullmatch(value.strip()):
        reason = (
            f"{name}={value!r:.80} is the print of a Python set or list: PEFT takes it for an "
            f"expression, which matches no layer; write {json.dumps(QUOTED.findall(value)):.80}"
        )
        raise AdapterRejected(reason, [Problem(reason)])
    return value if isinstance(value, str) and value else _names(fields, name)
