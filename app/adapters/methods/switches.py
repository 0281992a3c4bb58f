"""Whose formula a layer's parts are, and whether the config's switches say the same."""

from __future__ import annotations

from app.adapters.config.recipe import Recipe
from app.adapters.layouts import PEFT_KINDS
from app.adapters.methods.fold import Layer, Misfit
from app.adapters.methods.kinds import Method

LORA_PARTS = {"A", "B", "B.bias", "magnitude", "diag"}


def kind_of_layer(layer: Layer, recipe: Recipe) -> Method | None:
    """Whose formula a Linear's parts are; None: it is given whole. Raises Misfit."""
    kinds: set[Method] = {PEFT_KINDS[part] for part in layer.parts if part in PEFT_KINDS}
    if not kinds and layer.parts.keys() & LORA_PARTS:
        kinds = {"LORA"}
    if len(kinds) > 1:
        raise Misfit(f"mixes the tensors of {' and '.join(sorted(kinds))}")
    kind = next(iter(kinds), None)
    if kind not in (None, recipe.kind):
        part = next(part for part in layer.parts if PEFT_KINDS.get(part, kind) == kind)
        if not recipe.configured:
            raise Misfit(f"is {kind}'s, whose adapter_config.json is needed: send it along", part)
        raise Misfit(f"is {kind}'s, and the config's peft_type is {recipe.kind}", part)
    return kind


def check_switches(layer: Layer, recipe: Recipe) -> None:
    """What the config switches on must be in the file, and nothing that it leaves off. Raises Misfit."""
    if "diag" in layer.parts and not recipe.configured:
        raise Misfit("is KaSA's, whose adapter_config.json is needed: send it along", "diag")
    switches = [("magnitude", "use_dora", recipe.dora)]
    if "A" in layer.parts:
        switches += [
            ("diag", "kasa_config", recipe.truncated),
            ("B.bias", "lora_bias", recipe.lora_bias),
        ]
    for part, name, on in switches:
        if part in layer.parts and not on:
            raise Misfit(f"is there, but the config's {name} is off: PEFT would leave it out", part)
        pair = next((p for p in ("A", "embedding_A") if p in layer.parts), None)
        if part == "B.bias" and recipe.blocks is not None:
            continue  # a block-diagonal B has none
        if on and part not in layer.parts and pair is not None:
            said = "the config's" if recipe.configured else "other layers'"
            raise Misfit(f"{said} {name} is on, but this layer has no {part}", pair)
