"""What the config says was trained, against what the file holds: neither is served in part.

PEFT saves every layer that it targets, so one that is missing means half a file; and PEFT ignores
tensors of layers that it does not target, so serving them would be another model than the trained
one. Only layers inside the encoder's stack must be there: a model trained for classification may
have had no pooler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import assert_never

from app.adapters.base import Base
from app.adapters.config.recipe import Recipe
from app.adapters.layouts import Parts
from app.adapters.refusals import Problem

IN_STACK = re.compile(r"(^|\.)\d+\.")
ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."
WHOLE_PARTS = {"weight", "bias", "tokens"}


def check_targets(
    recipe: Recipe, base: Base, parts: Parts, resolved: Mapping[str, str]
) -> list[Problem]:
    """A problem for each layer that is targeted and missing, or there and not targeted.

    resolved: a module's path in the file -> in the base. Raises AdapterRejected for an expression
    that is none, or takes too long.
    """
    if not recipe.configured:
        return []
    found = list(_missing_whole(recipe, base, parts, resolved))
    found += _missing_biases(recipe, base, parts, resolved)
    found += _missing_tokens(recipe, parts)
    adapted = {path for path in parts.modules if _adapted(recipe, parts, path)} - {"", "base_model"}
    if parts.layout == "peft":
        found += _out_of_place(recipe, parts, adapted)
    if recipe.targeting.target_modules is None:
        if parts.layout == "peft":
            found.append(
                Problem("the config does not say target_modules: PEFT would choose its own")
            )
        return found
    prefixed = [path.startswith(f"{base.prefix}.") for path in resolved]
    if parts.layout == "peft" and any(prefixed) and not all(prefixed):
        reason = "some layers are spelled with the model's prefix, some without: PEFT would leave one kind out"
        found.append(Problem(reason))
    present = {resolved[path] for path in adapted if path in resolved}
    for path in _could_be_targeted(recipe, base):
        spelled = base.spellings(path)[any(prefixed)]
        if path not in present and is_target(recipe, base, path, spelled):
            found.append(Problem("is targeted by the config, but has no tensors in the file", path))
    for path in sorted(adapted):
        if not is_target(recipe, base, resolved.get(path, path), path):
            reason = "is not among the layers that the config targets: PEFT would leave it out"
            found.append(Problem(reason, parts.name(path)))
    return found


def _adapted(recipe: Recipe, parts: Parts, path: str) -> bool:
    """Whether the file has what PEFT's method itself trains of this layer, and not only the whole."""
    module = parts.modules[path]
    match recipe.kind:
        case "LN_TUNING":
            return any(parts.wraps.get((path, part)) == "ln_tuning_layers" for part in module)
        case "TRAINABLE_TOKENS":
            return "tokens" in module
        case "LORA" | "ADALORA" | "LOHA" | "LOKR" | "IA3" | "VERA" | "FOURIERFT" | "OFT":
            return bool(module.keys() - WHOLE_PARTS)
        case _:
            assert_never(recipe.kind)


def _out_of_place(recipe: Recipe, parts: Parts, adapted: Collection[str]) -> Iterator[Problem]:
    """Whole weights and biases under a name that PEFT does not look them up by, and leaves out."""
    for (path, part), wrap in parts.wraps.items():
        if part not in ("weight", "bias"):
            continue
        wrapped = path in adapted or "tokens" in parts.modules[path]
        saved = any(_under(path, name) for name in recipe.targeting.modules_to_save)
        there = {
            "": not wrapped,
            "base_layer": wrapped,
            "ln_tuning_layers": recipe.kind == "LN_TUNING",
            "modules_to_save": saved,
        }[wrap]
        if not there:
            reason = "is not where the config puts this layer's: PEFT would leave it out"
            yield Problem(reason, parts.name(path, part))


def _missing_tokens(recipe: Recipe, parts: Parts) -> Iterator[Problem]:
    """Token ids without their rows."""
    given = [path for path, module in parts.modules.items() if "tokens" in module]
    if recipe.tokens is None:
        return
    names = list(recipe.tokens) if isinstance(recipe.tokens, Mapping) else [""]
    for name in names:
        if not any(path.endswith(name) for path in given):
            yield Problem(
                "the config names token ids, and their rows are not in the file", name or None
            )


def _could_be_targeted(recipe: Recipe, base: Base) -> Iterator[str]:
    """Layers that this kind changes and every model has; LoRA's embeddings too."""
    if recipe.kind == "LN_TUNING":
        yield from (path for path in base.norms if IN_STACK.search(path))
        return
    if recipe.kind in ("LORA", "TRAINABLE_TOKENS"):
        yield from base.embeddings
    if recipe.kind != "TRAINABLE_TOKENS":
        yield from (path for path in base.linears if not path.startswith("pooler"))


def is_target(recipe: Recipe, base: Base, target: str, path: str) -> bool:
    """Whether the config targets the layer. target: the base's path; path: as the file spells it.

    Source: peft.tuners.tuners_utils.check_target_module_exists.
    """
    said = recipe.targeting
    if isinstance(said.target_modules, str) and said.target_modules.lower() == "all-linear":
        hit = target in base.linears or target not in {*base.embeddings, *base.norms}
    else:
        hit = _matches(recipe, said.target_modules, path)
    if not hit or _matches(recipe, said.exclude_modules, path):
        return False
    if any(_under(path, name) for name in said.modules_to_save):
        return False
    if said.layers_to_transform is None or isinstance(said.target_modules, str):
        return True
    whole_path = path in (said.target_modules or ())  # stands above the layers
    return whole_path or _layer_of(recipe, path) in said.layers_to_transform


def _matches(recipe: Recipe, names: str | Collection[str] | None, path: str) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return recipe.patterns.match(names, path, whole=True) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _layer_of(recipe: Recipe, path: str) -> int | None:
    """The layer's number: the first one, or the first behind one of layers_pattern."""
    patterns = recipe.targeting.layers_pattern
    names = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in patterns] or [ANY_LAYER]
    for name in names:
        if found := recipe.patterns.match(name, path):
            return int(found["idx"])
    return None


def _under(path: str, name: str) -> bool:
    """Whether a module of this name is the path's own or holds it."""
    return f".{name}." in f".{path}."


def _missing_whole(
    recipe: Recipe, base: Base, parts: Parts, resolved: Mapping[str, str]
) -> Iterator[Problem]:
    """Layers in modules_to_save that the file does not bring whole."""
    whole = {resolved.get(p) for p, module in parts.modules.items() if "weight" in module}
    for path in [*base.linears, *base.embeddings, *base.norms]:
        named = any(_under(path, name) for name in recipe.targeting.modules_to_save)
        if named and path not in whole and not path.startswith("pooler"):
            yield Problem("is in the config's modules_to_save, but not in the file", path)


def _missing_biases(
    recipe: Recipe, base: Base, parts: Parts, resolved: Mapping[str, str]
) -> Iterator[Problem]:
    """Biases that the config says were trained. lora_only: the targets'; all: every one."""
    if recipe.bias == "none" or lost_biases(recipe, parts):
        return
    have = {resolved.get(p) for p, module in parts.modules.items() if "bias" in module}
    adapted = {resolved.get(p) for p, m in parts.modules.items() if m.keys() - WHOLE_PARTS}
    for path in [*base.linears, *base.norms]:
        match recipe.bias:
            case "lora_only":
                wanted = path in adapted
            case "all":
                wanted = IN_STACK.search(path) is not None
            case _:
                assert_never(recipe.bias)
        if wanted and base.bias(path) is not None and path not in have:
            yield Problem(f"bias={recipe.bias}, but its bias is not in the file", f"{path}.bias")


def lost_biases(recipe: Recipe, parts: Parts) -> bool:
    """Whether bias=lora_only was trained and PEFT has saved none of them, as it did before 0.21."""
    adapted = [module for module in parts.modules.values() if module.keys() - WHOLE_PARTS]
    kept = recipe.biases_saved or any("bias" in module for module in adapted)
    return recipe.bias == "lora_only" and not kept
