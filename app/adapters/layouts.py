"""Tensor names of an adapter file -> module paths and their parts, in PEFT's words.

Knows the spellings of PEFT, the tutorial, loralib, minLoRA and AdapterHub's `adapters`; knows no
mathematics (methods/) and no model class. A name that means nothing is a problem, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.adapters.base import HEAD_PATHS, Base
from app.adapters.letters import Layout, canonical, letter_order
from app.adapters.methods.table import METHODS, NO_LONGER, SHARED_PARTS, SUFFIXES, WRAPPERS
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Problem, Problems

PEFT_PREFIX = "base_model.model."
PREFIX = re.compile(r"(base_model\.model\.)?(_orig_mod\.)?(0\.auto_model\.)?")
NAME = r"(?:\.(?P<name>(?!(?:weight|bias)(?:\.|$))[^.]+))?"  # an adapter's name inside a key
BASE_LAYER = "base_layer"  # PEFT's wrapper of a layer that it adapts
NAMES = {suffix.removesuffix(".weight").removesuffix(".bias") for suffix in SUFFIXES}
NAMES |= {BASE_LAYER, *WRAPPERS}
PEFT_KEY = re.compile(
    rf"(?:(?P<path>.+?)\.)?(?P<tensor>{'|'.join(map(re.escape, sorted(NAMES)))})"
    rf"{NAME}(?:\.(?P<leaf>weight|bias))?"
)
TRAINED = re.compile(r"(?P<path>.+?)\.modules_to_save(?:\.(?P<rest>.+))?\.(?P<part>weight|bias)")
UNTRAINED = re.compile(r".+?\.original_module\..+")  # the base's, which PEFT keeps beside it
READ_NO_MORE = NO_LONGER | {  # what old versions of PEFT wrote, and PEFT itself reads no more
    r"\.(modules_to_save|original_module)\.(.+\.)?lora_": "is LoRA on a layer that was trained "
    "whole as well, which PEFT itself reads no more"
}
OTHER_KEYS: dict[Layout, re.Pattern[str]] = {
    "tutorial": re.compile(r"(?P<path>.+)\.lora\.(?P<part>[AB])"),
    "minlora": re.compile(r"(?P<path>.+)\.parametrizations\.weight\.0\.lora_(?P<part>[AB])"),
    "adapters": re.compile(r"(?P<path>.+)\.loras\.(?P<name>[^.]+)\.lora_(?P<part>[AB])"),
}
# The base's own weight, which some layouts keep beside their matrices.
FROZEN: dict[Layout, re.Pattern[str]] = {
    "tutorial": re.compile(r"(?P<path>.+)\.linear\.(?P<part>weight|bias)"),
    "minlora": re.compile(r"(?P<path>.+)\.parametrizations\.(?P<part>weight)\.original"),
}
WHOLE_KEY = re.compile(r"(?P<path>.+)\.(?P<part>weight|bias)")
LORALIB = {"lora_A", "lora_B"}  # without PEFT's .weight
# Methods whose matrices are bare parameters in PEFT, too.
BARE = [method for method in METHODS.values() if "lora_A" in method.linear]
BARE_PARTS = {part for method in BARE for part in method.linear.values()} - {"A", "B"}


@dataclass(frozen=True, eq=False)
class Parts:
    """A file's tensors by module and part, both in PEFT's words.

    modules: path as the file spells it -> part -> tensor. names: (path, part) -> what the file
    calls it. wrappers: (path, part) -> PEFT's wrapper in that name, "" without. ignored: names of
    tensors that only repeat what others say. problems: names that mean nothing.
    """

    layout: Layout
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    wrappers: dict[tuple[str, str], str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    def name(self, path: str, part: str | None = None) -> str:
        """What the file calls a part; without one, the module's first part."""
        parts = self.modules.get(path, {})
        return self.names.get((path, part or next(iter(parts), "")), path)

    def has(self, path: str, part: str) -> bool:
        """Does the file have this part of this module?"""
        return part in self.modules.get(path, {})

    def all_parts(self) -> set[str]:
        """Every part that any module has."""
        return {part for module in self.modules.values() for part in module}


@dataclass(frozen=True)
class _Key:
    """One name, understood. layout: whose spelling it is; None: everybody's. adapter: the adapter's
    name in it. wrapper: PEFT's, as in Parts.
    """

    path: str
    part: str
    layout: Layout | None
    adapter: str | None = None
    wrapper: str = ""


Keys = dict[str, _Key]


def read_names(tensors: Mapping[str, Tensor], recipe: Recipe, base: Base) -> Parts:
    """Sort a file's tensors by module and part; names that mean nothing are among its problems.

    Raises AdapterRejected for names of two layouts or of two adapters.
    """
    keys = _understood(tensors, base)
    adapters = sorted({key.adapter for key in keys.values() if key.adapter})
    if len(adapters) > 1:
        raise AdapterRejected(f"the file holds several adapters: {', '.join(adapters[:5])}")
    layout = _layout(keys, recipe)
    if layout == "tutorial":
        layout = letter_order(_tutorial_pairs(tensors, keys), recipe, base)
    parts = Parts(layout)
    prefixed = [name.startswith("base_model.") for name in tensors]
    if recipe.configured and layout == "peft" and any(prefixed) and not all(prefixed):
        reason = f"some tensors' names begin with {PEFT_PREFIX} and some do not"
        parts.problems.add(f"{reason}: PEFT would leave these out")
    for name in tensors.keys() - keys.keys():
        reasons = (why for old, why in READ_NO_MORE.items() if re.search(old, name))
        parts.problems.add(next(reasons, "is no tensor that this server knows"), name)
    for name, key in keys.items():
        _add(parts, name, key, tensors[name])
    if layout != "peft":
        _turn(parts, base)
    return parts


def plain_name(name: str, base: Base) -> str | None:
    """PEFT's own spelling of a PEFT key: its prefix, no adapter's name. None: PEFT ignores it."""
    bare = _bare(name)
    if UNTRAINED.fullmatch(bare):
        return None
    if match := TRAINED.fullmatch(bare):
        return f"{PEFT_PREFIX}{_trained_path(match, base)}.{match['part']}"
    if match := PEFT_KEY.fullmatch(bare):
        leaf = f".{match['leaf']}" if match["leaf"] else ""
        if match["tensor"] in SHARED_PARTS:
            return f"base_model.{match['tensor']}"
        return f"{PEFT_PREFIX}{match['path']}.{match['tensor']}{leaf}"
    return f"{PEFT_PREFIX}{bare}"


def _bare(name: str) -> str:
    """The name without what wraps the whole model."""
    match = PREFIX.match(name)
    return name[match.end() :] if match else name


def _understood(names: Collection[str], base: Base) -> Keys:
    """The names that mean something."""
    keys = {name: key for name in names if (key := _understand(name, base)) is not None}
    layouts = {key.layout for key in keys.values()}
    for layout, pattern in FROZEN.items():  # now `.linear.weight` can be told from a head
        for name in names if layout in layouts else ():
            if match := pattern.fullmatch(_bare(name)):
                keys[name] = _Key(match["path"], match["part"], layout)
    return keys


def _understand(name: str, base: Base) -> _Key | None:
    bare = _bare(name)
    for layout, pattern in OTHER_KEYS.items():
        if match := pattern.fullmatch(bare):
            adapter = match.groupdict().get("name")
            return _Key(match["path"], match["part"], layout, adapter)
    if any(re.search(old, bare) for old in READ_NO_MORE):
        return None
    if match := TRAINED.fullmatch(bare):
        path = _trained_path(match, base)
        return _Key(path, match["part"], "peft", wrapper="modules_to_save")
    if UNTRAINED.fullmatch(bare):
        return _Key(bare, "untrained", "peft")
    if match := PEFT_KEY.fullmatch(bare):
        return _peft_key(match)
    if match := WHOLE_KEY.fullmatch(bare):
        return _Key(match["path"], match["part"], None)
    return None


def _trained_path(match: re.Match[str], base: Base) -> str:
    """The layer that PEFT's wrapper holds.

    Between the two may stand an adapter's name, the path of a layer inside of the wrapped module,
    or both: bias=all leaves the name out up to PEFT 0.15.
    """
    path, steps = match["path"], (match["rest"] or "").split(".")
    inside, named = (".".join([path, *filter(None, s)]) for s in (steps, steps[1:]))
    there = (p for p in (inside, named) if p in HEAD_PATHS or base.resolve(p) is not None)
    return next(there, named)


def _peft_key(match: re.Match[str]) -> _Key | None:
    """None where PEFT has no such name."""
    path, tensor, leaf = match["path"] or "", match["tensor"], match["leaf"]
    if tensor == BASE_LAYER or tensor in WRAPPERS:
        path = path.removesuffix(".token_adapter")
        return _Key(path, leaf, "peft", match["name"], tensor) if leaf else None
    suffix = f"{tensor}.{leaf}" if leaf else tensor
    part = SUFFIXES.get(suffix)
    if part is None:
        return None
    return _Key(path, part, "loralib" if suffix in LORALIB else "peft", match["name"])


def _tutorial_pairs(tensors: Mapping[str, Tensor], keys: Keys) -> dict[str, dict[str, Tensor]]:
    """The tutorial's matrices by path and letter."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, key in keys.items():
        if key.layout == "tutorial" and key.part in "AB":
            pairs.setdefault(key.path, {})[key.part] = tensors[name]
    return pairs


def _layout(keys: Keys, recipe: Recipe) -> Layout:
    """One layout for the whole file; AdaLoRA's bare matrices are spelled as loralib's. Raises
    AdapterRejected for a mixture, and for another layout than the query's.
    """
    layouts = {key.layout for key in keys.values() if key.layout}
    pairs = {key.layout for key in keys.values() if key.part in ("A", "B")}
    bare = METHODS[recipe.kind] in BARE or any(key.part in BARE_PARTS for key in keys.values())
    if bare and "loralib" in layouts:
        if "peft" in pairs:
            names = " or ".join(method.name for method in BARE)
            reason = f"{names}'s lora_A and lora_B have no .weight: PEFT would leave these out"
            raise AdapterRejected(reason, [Problem(reason)])
        layouts = (layouts - {"loralib"}) | {"peft"}
    if len(layouts) > 1:
        raise AdapterRejected(f"the file mixes the keys of {' and '.join(sorted(layouts))}")
    layout: Layout = next(iter(layouts), "peft")
    if recipe.layout is not None and not layout.startswith(recipe.layout.partition("-")[0]):
        raise AdapterRejected(f"layout={recipe.layout}, but the file's keys are those of {layout}")
    return layout


def _add(parts: Parts, name: str, key: _Key, tensor: Tensor) -> None:
    """Put a tensor in its place; of two that are equal, the one that PEFT reads."""
    place = key.path, key.part
    if key.part == "untrained":
        parts.ignored.append(name)
        return
    module = parts.modules.setdefault(key.path, {})
    if key.part not in module:
        module[key.part] = tensor
        parts.names[place], parts.wrappers[place] = name, key.wrapper
    elif not torch.equal(module[key.part], tensor):
        parts.problems.add(f"says otherwise than {parts.names[place]}", name)
    elif parts.wrappers[place] == "modules_to_save" and not key.wrapper:
        parts.ignored.append(parts.names[place])  # bias=all saves a trained head's bias twice
        parts.names[place], parts.wrappers[place] = name, key.wrapper
    else:
        parts.ignored.append(name)


def _turn(parts: Parts, base: Base) -> None:
    """Give every pair PEFT's shapes and words: an embedding's pair is named apart there."""
    for path, module in parts.modules.items():
        if "A" not in module or "B" not in module:
            continue
        A, B = canonical(module["A"], module["B"], parts.layout)
        if base.resolve(path) in base.embeddings:
            if parts.layout == "minlora":  # A [num, r], B [r, dim]
                A, B = A.T, B.T
            del module["A"], module["B"]
            module |= {"embedding_A": A, "embedding_B": B}
            for letter in "AB":
                parts.names[path, f"embedding_{letter}"] = parts.names[path, letter]
        else:
            module |= {"A": A, "B": B}
