"""AdapterHub's `adapters` configs in PEFT's words.

Source: adapters.LoRAConfig and adapters.loading.AdapterLoader, version 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from app.adapters.config.peft_fields import is_off
from app.adapters.refusals import AdapterRejected, Problems

PLAIN = {"architecture": "lora", "composition_mode": "add", "use_gating": False}
SCALED_SINCE = Version("1.1.0")  # before, the library trained with alpha = r, whatever it wrote
FIELDS = {
    "architecture", "selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "r", "alpha",
    "dropout", "attn_matrices", "composition_mode", "init_weights", "init_weights_seed", "use_gating",
    "vera_d", "vera_b", "dtype",
}  # fmt: skip
OUTER_FIELDS = {
    "config", "config_id", "hidden_size", "label2id", "model_class", "model_name", "model_type",
    "name", "version",
}  # fmt: skip
LETTERS = {"q": "query", "k": "key", "v": "value"}


def is_adapterhub(config: Mapping[str, Any]) -> bool:
    """Is it AdapterHub's? Its method is one level down."""
    return isinstance(config.get("config"), dict) and "architecture" in config["config"]


def in_pefts_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """LoraConfig's fields. Raises AdapterRejected for what is not plain LoRA."""
    inner = config["config"]
    problems = Problems()
    unknown = [*(inner.keys() - FIELDS), *(config.keys() - OUTER_FIELDS)]
    values = {**config, **inner}
    for name in sorted(map(str, unknown)):
        if not is_off(values.get(name)):
            why = "a field this server does not know; it is not served"
            problems.add(f"{name}={values[name]!r:.60}: {why}")
    for name, served in PLAIN.items():
        if inner.get(name, served) != served:
            problems.add(f"{name}={inner.get(name)!r:.40} is not served; {served!r} is")
    if inner.get("vera_d") is not None or inner.get("vera_b") is not None:
        problems.add("vera_d, vera_b: AdapterHub's VeRA is not served")
    if problems:
        raise AdapterRejected("AdapterHub's method is not served", problems)
    alpha = inner.get("r") if _scaled_wrongly(config.get("version")) else inner.get("alpha")
    model_type = config.get("model_type")
    module = f"transformers.models.{model_type}" if isinstance(model_type, str) else None
    return {
        "peft_type": "LORA",
        "lora_alpha": alpha,
        "r": inner.get("r"),
        "base_model_name_or_path": config.get("model_name"),
        "target_modules": _targets(inner, model_type),
        "auto_mapping": {"parent_library": module} if module else None,
    }


def _scaled_wrongly(version: Any) -> bool:
    if not isinstance(version, str) or not version.startswith("adapters."):
        return False
    try:
        return Version(version.removeprefix("adapters.")) < SCALED_SINCE
    except InvalidVersion:
        raise AdapterRejected(
            f"AdapterHub's version {version!r:.40} is none, and the scale depends on it"
        ) from None


def _targets(inner: Mapping[str, Any], model_type: Any) -> str | None:
    """Which layers it adapts, as an expression; None where it is not known how they are called."""
    if model_type not in ("bert", "roberta", "xlm-roberta", "electra"):
        return None
    left_out = inner.get("leave_out") or []
    letters = inner.get("attn_matrices") or []
    if not (isinstance(left_out, list) and all(type(n) is int for n in left_out)):
        raise AdapterRejected("AdapterHub's leave_out is not a list of layers")
    if not (
        isinstance(letters, list) and all(isinstance(x, str) and x in LETTERS for x in letters)
    ):
        raise AdapterRejected(f"AdapterHub's attn_matrices are not among {', '.join(LETTERS)}")
    names = []
    if inner.get("selfattn_lora", True):
        names += [rf"attention\.self\.{LETTERS[x]}" for x in letters]
    names += [r"intermediate\.dense"] if inner.get("intermediate_lora") else []
    names += [r"output\.dense"] if inner.get("output_lora") else []
    layers = rf"(?!(?:{'|'.join(map(str, left_out))})\.)" if left_out else ""
    return rf".*encoder\.layer\.{layers}\d+\.(?:{'|'.join(names)})"
