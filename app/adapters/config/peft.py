"""What PEFT's own config says of the training: which layers, which tokens, which start, which switches."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, assert_never, get_args

from packaging.version import InvalidVersion, Version

from app.adapters.config.fields import Fields
from app.adapters.config.recipe import Bias, Init, Targeting
from app.adapters.methods.kinds import Method
from app.adapters.refusals import AdapterRejected, Problem

PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")
PRINTED = re.compile(r"[\[{(]\s*(['\"])[\w.]+\1(\s*,\s*(['\"])[\w.]+\3)*\s*,?\s*[\])}]")
QUOTED = re.compile(r"['\"]([\w.]+)['\"]")
BIASES_SINCE = Version("0.21")
WRAPPED = "0.auto_model."  # how sentence-transformers' own model spells its encoder


def bias(read: Fields) -> Bias:
    """PEFT's methods spell lora_only each in their own way: vera_only, oft_only, …"""
    said = read.fields.get("bias")
    if isinstance(said, str) and said.endswith("_only"):
        return "lora_only"
    found: Bias | None = read.one_of("bias", ("none", "all"))
    return found or "none"


def biases_saved(fields: Mapping[str, Any]) -> bool:
    """Whether the PEFT that wrote it saved what bias=lora_only trained: 0.8 to 0.18 saved none, 0.21 all.

    It notes its version since 0.18.
    """
    try:
        return Version(str(fields.get("peft_version"))) >= BIASES_SINCE
    except InvalidVersion:
        return False


def number(read: Fields, name: str, default: Any) -> Any:
    """The field in its default's own type."""
    if isinstance(default, bool):
        found: Any = read.boolean(name)
    else:
        found = read.integer(name, 0) if isinstance(default, int) else read.number(name)
    return default if found is None else found


def init(fields: Mapping[str, Any], problems: list[Problem]) -> Init | None:
    """pissa or olora; None for a start of training that left the base alone."""
    said = fields.get("init_lora_weights")
    if any(said is plain or said == plain for plain in PLAIN_INITS):
        return None
    repeatable: tuple[Init, ...] = get_args(Init)
    found = next((i for i in repeatable if isinstance(said, str) and said.lower() == i), None)
    if found is not None:
        return found
    problems.append(
        Problem(
            f"init_lora_weights={said!r:.40}: it was trained on a changed base, which no file holds: "
            "convert the adapter with save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    )
    return None


def blocks(fields: Mapping[str, Any], problems: list[Problem]) -> int | None:
    """BD-LoRA's number of blocks; which matrix has them, its shape tells."""
    config = fields.get("use_bdlora")
    if not config:
        return None
    count = config.get("nblocks", 1) if isinstance(config, dict) else None
    if type(count) is not int or count < 1:
        problems.append(Problem(f"use_bdlora={config!r:.60} does not say its nblocks"))
        return None
    return count


def tokens(fields: Mapping[str, Any], problems: list[Problem]) -> Any:
    """trainable_token_indices: ids, or ids by embedding; TRAINABLE_TOKENS says token_indices."""
    said = fields.get("trainable_token_indices") or fields.get("token_indices")
    if not said:
        return None
    lists = said if isinstance(said, dict) else {"": said}
    if not all(isinstance(v, list) and all(type(i) is int for i in v) for v in lists.values()):
        problems.append(Problem(f"token indices {said!r:.60} are not lists of token ids"))
        return None
    found = {str(name): tuple(ids) for name, ids in lists.items()}
    return found if isinstance(said, dict) else found[""]


def targeting(read: Fields) -> Targeting:
    """Raises AdapterRejected for names that were printed into a text."""

    def names(name: str) -> tuple[str, ...] | None:
        value = read.fields.get(name)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(v.removeprefix(WRAPPED) for v in value)
        if value not in (None, [], ""):
            read.problems.append(Problem(f"{name}={value!r:.60} is not a list of names"))
        return None

    def expression(name: str) -> str | tuple[str, ...] | None:
        value = read.fields.get(name)
        if isinstance(value, str) and PRINTED.fullmatch(value.strip()):
            reason = (
                f"{name}={value!r:.80} is the print of a Python set or list: PEFT takes it for an "
                f"expression, which matches no layer; write {json.dumps(QUOTED.findall(value)):.80}"
            )
            raise AdapterRejected(reason, [Problem(reason)])
        return value if isinstance(value, str) and value else names(name)

    layers = read.fields.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    if layers is not None and not (
        isinstance(layers, list) and all(type(i) is int for i in layers)
    ):
        read.problems.append(Problem(f"layers_to_transform={layers!r:.60} are not layers' numbers"))
        layers = None
    pattern = expression("layers_pattern")
    return Targeting(
        expression("target_modules"),
        expression("exclude_modules"),
        names("modules_to_save") or (),
        tuple(layers) if layers else None,
        (pattern,) if isinstance(pattern, str) else pattern or (),
    )


def trained_type(fields: Mapping[str, Any]) -> str | None:
    """The model_type of the class that PEFT saw at training: auto_mapping names its module."""
    mapping = fields.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    parts = library.split(".") if isinstance(library, str) else []
    if parts[:2] != ["transformers", "models"] or len(parts) < 3:
        return None
    return parts[2].replace("_", "-")


def unnamed_method(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning for an adapter_config.json that leaves out its method, where others than LoRA may be meant."""
    if not config or config.get("peft_type") is not None:
        return ()
    return ("its adapter_config.json says no peft_type: it is read as LORA",)


def computed_otherwise(kind: Method, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning for a method that an older PEFT computed in another way, which no file tells.

    PEFT notes its version since 0.18. tests/zoo has what the older ones answered.
    """
    if fields.get("peft_type") is None or fields.get("peft_version") is not None:
        return ()
    match kind:
        case "LOKR":
            return (
                "PEFT before 0.13 left alpha / r out of LoKr; it is served as PEFT 0.21 loads it: if it "
                "was trained with such a version, write alpha equal to r into its config",
            )
        case "OFT":
            return (
                "PEFT before 0.18 computed OFT otherwise; it is served as PEFT 0.21 loads the file",
            )
        case "LORA" | "ADALORA" | "LOHA" | "IA3" | "VERA" | "FOURIERFT":
            return ()
        case "LN_TUNING" | "TRAINABLE_TOKENS":
            return ()
        case _:
            assert_never(kind)
