"""The table of PEFT's methods: those that are served, and why the others are not.

All that differs between methods stands here, by peft_type or by a tensor's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from app.adapters.methods.adalora import ADALORA
from app.adapters.methods.fourierft import FOURIERFT
from app.adapters.methods.ia3 import IA3
from app.adapters.methods.layer import Layer
from app.adapters.methods.ln_tuning import LN_TUNING
from app.adapters.methods.loha import LOHA
from app.adapters.methods.lokr import LOKR
from app.adapters.methods.lora import LORA
from app.adapters.methods.method import Method
from app.adapters.methods.oft import OFT
from app.adapters.methods.trainable_tokens import TRAINABLE_TOKENS
from app.adapters.methods.vera import VERA
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Misfit, Problem

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LORA,  # first: bare A and B are its
        ADALORA,
        LOHA,
        LOKR,
        IA3,
        VERA,
        FOURIERFT,
        OFT,
        LN_TUNING,
        TRAINABLE_TOKENS,
    )
}
PROMPTS = "trained vectors before the text, which change no layer"
REFUSED_METHODS = {
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
WHOLE = frozenset({"weight", "bias"})  # parts of a layer that no method writes, but any may bring
# How PEFT spells a tensor behind its layer's path -> our name of the part.
SUFFIXES: dict[str, str] = {
    suffix: part
    for method in METHODS.values()
    for suffix, part in {**method.linear, **method.embedding, **method.shared}.items()
}
SHARED_PARTS = frozenset(part for m in METHODS.values() for part in m.shared.values())
WRAPPERS = frozenset(m.wrapper for m in METHODS.values() if m.wrapper is not None)
NO_LONGER = {name: why for m in METHODS.values() for name, why in m.no_longer.items()}


def method_of(config: Mapping[str, Any]) -> Method:
    """By its peft_type, else LoRA. Raises AdapterRejected for one that is not served."""
    name = config.get("peft_type") or LORA.name
    method = next((method for method in METHODS.values() if method.name == name), None)
    if method is None:
        why = REFUSED_METHODS.get(str(name), f"served are {', '.join(METHODS)}")
        reason = f"peft_type {name!r:.40} is not served: {why}"
        raise AdapterRejected(reason, [Problem(reason)])
    return method


def method_of_linear(layer: Layer, recipe: Recipe) -> Method | None:
    """The method whose formula a Linear's parts are; None: it is given whole.

    Raises Misfit for parts of no Linear, of several methods, or of another one than the recipe's.
    """
    return _method_of(layer, {name: m.linear for name, m in METHODS.items()}, WHOLE, recipe)


def method_of_embedding(layer: Layer, recipe: Recipe) -> Method | None:
    """The same for an embedding, which has no bias. Raises Misfit."""
    spelled = {name: m.embedding for name, m in METHODS.items()}
    return _method_of(layer, spelled, frozenset({"weight"}), recipe)


def _method_of(
    layer: Layer, spelled: Mapping[str, Mapping[str, str]], whole: frozenset[str], recipe: Recipe
) -> Method | None:
    """spelled: a method's name -> its tensors at a layer like this one. Raises Misfit."""
    parts = {name: frozenset(tensors.values()) for name, tensors in spelled.items()}
    check_parts(layer, whole.union(*parts.values()))
    trained = [part for part in layer.parts if part not in whole]
    if not trained:
        return None
    fitting = [name for name, own in parts.items() if own.issuperset(trained)]
    if not fitting:
        owners = {next(n for n, own in parts.items() if part in own) for part in trained}
        raise Misfit(f"mixes the tensors of {' and '.join(sorted(owners))}")
    method = METHODS[fitting[0]]
    if method.name == recipe.kind or method.beside_others:
        return method
    if not recipe.configured:
        reason = f"is {method.name}'s, whose adapter_config.json is needed: send it along"
        raise Misfit(reason, trained[0])
    raise Misfit(f"is {method.name}'s, and the config's peft_type is {recipe.kind}", trained[0])


def check_parts(layer: Layer, allowed: Collection[str]) -> None:
    """Raises Misfit for a part that a layer like this one does not have."""
    for part in layer.parts:
        if part not in allowed:
            raise Misfit("does not belong to a layer like this one", part)
