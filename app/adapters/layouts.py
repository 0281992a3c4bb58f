"""Tensor names of an adapter file -> module paths and their parts, in PEFT's words.

Knows the spellings of PEFT, the tutorial, loralib, minLoRA and AdapterHub's `adapters`; knows no
mathematics (fold.py) and no model class. A name that means nothing here is a problem, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.adapters.base import HEAD_PATHS, Base
from app.adapters.config.recipe import Recipe
from app.adapters.letters import Layout, canonical, letter_order
from app.adapters.methods.kinds import Method
from app.adapters.refusals import AdapterRejected, Problem

PEFT_PREFIX = "base_model.model."
PREFIX = re.compile(r"(base_model\.model\.)?(_orig_mod\.)?(0\.auto_model\.)?")
NAME = r"(?:\.(?P<name>(?!(?:weight|bias)(?:\.|$))[^.]+))?"  # an adapter's name inside a key
PEFT_KEY = re.compile(
    r"(?:(?P<path>.+?)\.)?(?P<part>lora_embedding_[AB]|lora_magnitude_vector|lora_[ABE]|lora_diag"
    r"|token_adapter\.trainable_tokens_delta|trainable_tokens_delta|hada_w[12]_[ab]"
    r"|lokr_w[12](?:_[ab])?|ia3_l|vera_lambda_[bd]|vera_[AB]|fourierft_spectrum|oft_R"
    rf"|ln_tuning_layers|base_layer){NAME}(?:\.(?P<leaf>weight|bias))?"
)
TRAINED = re.compile(r"(?P<path>.+?)\.modules_to_save(?:\.(?P<rest>.+))?\.(?P<part>weight|bias)")
UNTRAINED = re.compile(
    r".+?\.original_module\..+"
)  # PEFT's copy of the base beside the trained one
UNKNOWN = "is no tensor that this server knows"
NO_LONGER = {  # what old versions of PEFT wrote, and PEFT itself reads no more
    re.compile(
        r"\.oft_[rs]$"
    ): "is OFT's as PEFT before 0.16 wrote it, which PEFT itself reads no more",
    re.compile(r"\.(modules_to_save|original_module)\.(.+\.)?lora_"): "is LoRA on a layer that was "
    "trained whole as well, which PEFT itself reads no more",
}
OTHER_KEYS: dict[Layout, re.Pattern[str]] = {
    "tutorial": re.compile(r"(?P<path>.+)\.lora\.(?P<part>[AB])"),
    "minlora": re.compile(r"(?P<path>.+)\.parametrizations\.weight\.0\.lora_(?P<part>[AB])"),
    "adapters": re.compile(r"(?P<path>.+)\.loras\.(?P<name>[^.]+)\.lora_(?P<part>[AB])"),
}
FROZEN: dict[
    Layout, re.Pattern[str]
] = {  # the base's own weight, which some layouts keep beside their matrices
    "tutorial": re.compile(r"(?P<path>.+)\.linear\.(?P<part>weight|bias)"),
    "minlora": re.compile(r"(?P<path>.+)\.parametrizations\.(?P<part>weight)\.original"),
}
WHOLE = re.compile(r"(?P<path>.+)\.(?P<part>weight|bias)")
WORDS = {  # PEFT's own spelling -> ours, where it is longer than it need be
    "lora_A": "A", "lora_B": "B", "lora_E": "E", "lora_diag": "diag",
    "lora_magnitude_vector": "magnitude", "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B", "token_adapter.trainable_tokens_delta": "tokens",
    "trainable_tokens_delta": "tokens",
}  # fmt: skip
WITH_LEAF = {"lora_A", "lora_B", "lora_magnitude_vector", "oft_R"}  # the others are bare parameters
PEFT_KINDS: dict[str, Method] = {  # which of PEFT's methods writes a part
    "hada_w1_a": "LOHA", "hada_w1_b": "LOHA", "hada_w2_a": "LOHA", "hada_w2_b": "LOHA",
    "lokr_w1": "LOKR", "lokr_w1_a": "LOKR", "lokr_w1_b": "LOKR",
    "lokr_w2": "LOKR", "lokr_w2_a": "LOKR", "lokr_w2_b": "LOKR",
    "vera_lambda_b": "VERA", "vera_lambda_d": "VERA", "vera_A": "VERA", "vera_B": "VERA",
    "ia3_l": "IA3", "fourierft_spectrum": "FOURIERFT", "oft_R": "OFT", "E": "ADALORA",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """modules: path as the file spells it -> part -> tensor; names: what the file calls each.

    wraps: PEFT's wrapper that a weight or bias is called after, "" without. ignored: tensors that only
    repeat what is said elsewhere. problems: names that mean nothing.
    """

    layout: Layout
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    wraps: dict[tuple[str, str], str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def name(self, path: str, part: str | None = None) -> str:
        """What the file calls a part; of a module its first."""
        parts = self.modules.get(path, {})
        return self.names.get((path, part or next(iter(parts), "")), path)


@dataclass(frozen=True)
class _Key:
    """One name, understood. layout: whose spelling it is; None: everybody's. wrap: as in Parts."""

    path: str
    part: str
    layout: Layout | None
    adapter: str | None = None
    wrap: str = ""


def read_names(tensors: Mapping[str, Tensor], recipe: Recipe, base: Base) -> Parts:
    """Raises AdapterRejected for names of two layouts or of two adapters."""
    keys = {name: _understand(name, base) for name in tensors}
    layouts = {key.layout for key in keys.values() if key and key.layout}
    if (
        "tutorial" in layouts or "minlora" in layouts
    ):  # now `.linear.weight` can be told from a head
        keys = {name: _frozen(name, layouts) or key for name, key in keys.items()}
    known = {name: key for name, key in keys.items() if key is not None}
    adapters = sorted({key.adapter for key in known.values() if key.adapter})
    if len(adapters) > 1:
        raise AdapterRejected(f"the file holds several adapters: {', '.join(adapters[:5])}")
    layout = _layout(layouts, known, recipe)
    if layout == "tutorial":
        layout = letter_order(_pairs(tensors, known), recipe, base)
    parts = Parts(layout)
    if recipe.configured and layout == "peft":
        prefixed = [name.startswith("base_model.") for name in tensors]
        if any(prefixed) and not all(prefixed):
            reason = f"some tensors' names begin with {PEFT_PREFIX} and some do not: PEFT would leave these out"
            parts.problems.append(Problem(reason))
    for name in tensors.keys() - known.keys():
        reason = next((why for old, why in NO_LONGER.items() if old.search(name)), UNKNOWN)
        parts.problems.append(Problem(reason, name))
    for name, key in known.items():
        _add(parts, name, key, tensors[name])
    if layout != "peft":
        _turn(parts, base)
    return parts


def plain_name(name: str, base: Base) -> str | None:
    """PEFT's own spelling of a PEFT key: its prefix, and no adapter's name. None: PEFT ignores it."""
    bare = _bare(name)
    if UNTRAINED.fullmatch(bare):
        return None
    if found := TRAINED.fullmatch(bare):
        return f"{PEFT_PREFIX}{_trained_path(found, base)}.{found['part']}"
    if found := PEFT_KEY.fullmatch(bare):
        leaf = f".{found['leaf']}" if found["leaf"] else ""
        if found["part"] in ("vera_A", "vera_B"):
            return f"base_model.{found['part']}"
        return f"{PEFT_PREFIX}{found['path']}.{found['part']}{leaf}"
    return f"{PEFT_PREFIX}{bare}"


def _bare(name: str) -> str:
    found = PREFIX.match(name)
    return name[found.end() :] if found else name


def _understand(name: str, base: Base) -> _Key | None:
    bare = _bare(name)
    for layout, pattern in OTHER_KEYS.items():
        if found := pattern.fullmatch(bare):
            adapter = found.groupdict().get("name")
            return _Key(found["path"], found["part"], layout, adapter)
    if any(old.search(bare) for old in NO_LONGER):
        return None
    if found := TRAINED.fullmatch(bare):
        path = _trained_path(found, base)
        return _Key(path, found["part"], "peft", wrap="modules_to_save")
    if UNTRAINED.fullmatch(bare):
        return _Key(bare, "untrained", "peft")
    if found := PEFT_KEY.fullmatch(bare):
        return _peft_key(found)
    if found := WHOLE.fullmatch(bare):
        return _Key(found["path"], found["part"], None)
    return None


def _trained_path(found: re.Match[str], base: Base) -> str:
    """The layer that PEFT's wrapper holds. Between the two may stand an adapter's name, the path of a layer
    inside of the wrapped module, or both: bias=all leaves the name out up to PEFT 0.15.
    """
    path, steps = found["path"], (found["rest"] or "").split(".")
    inside, named = (".".join([path, *filter(None, s)]) for s in (steps, steps[1:]))
    known = (p for p in (inside, named) if p in HEAD_PATHS or base.resolve(p) is not None)
    return next(known, named)


def _peft_key(found: re.Match[str]) -> _Key | None:
    path, part, leaf = found["path"] or "", found["part"], found["leaf"]
    if part in ("ln_tuning_layers", "base_layer"):
        path = path.removesuffix(".token_adapter")
        return _Key(path, leaf, "peft", found["name"], part) if leaf else None
    if (leaf and part not in WITH_LEAF) or (part == "oft_R" and leaf != "weight"):
        return None  # PEFT has no such name
    word = WORDS.get(part, part)
    bare_matrix = part in ("lora_A", "lora_B") and leaf is None
    if leaf == "bias":
        word = f"{word}.bias"
    return _Key(path, word, "loralib" if bare_matrix else "peft", found["name"])


def _frozen(name: str, layouts: set[Layout]) -> _Key | None:
    bare = _bare(name)
    for layout, pattern in FROZEN.items():
        found = pattern.fullmatch(bare)
        if layout in layouts and found:
            return _Key(found["path"], found["part"], layout)
    return None


def _pairs(tensors: Mapping[str, Tensor], keys: Mapping[str, _Key]) -> dict[str, dict[str, Tensor]]:
    """The tutorial's matrices by path and letter."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, key in keys.items():
        if key.layout == "tutorial" and key.part in "AB":
            found.setdefault(key.path, {})[key.part] = tensors[name]
    return found


def _layout(layouts: set[Layout], keys: Mapping[str, _Key], recipe: Recipe) -> Layout:
    """One layout for the whole file; AdaLoRA's matrices are spelled as loralib's."""
    if "loralib" in layouts and (
        recipe.kind == "ADALORA" or any(key.part == "E" for key in keys.values())
    ):
        if any(key.part in ("A", "B") and key.layout == "peft" for key in keys.values()):
            reason = "AdaLoRA's lora_A and lora_B have no .weight: PEFT would leave these out"
            raise AdapterRejected(reason, [Problem(reason)])
        layouts = (layouts - {"loralib"}) | {"peft"}
    if len(layouts) > 1:
        raise AdapterRejected(f"the file mixes the keys of {' and '.join(sorted(layouts))}")
    layout: Layout = next(iter(layouts), "peft")
    asked = recipe.layout
    if asked is not None and not layout.startswith(asked.partition("-")[0]):
        raise AdapterRejected(f"layout={asked}, but the file's keys are those of {layout}")
    return layout


def _add(parts: Parts, name: str, key: _Key, tensor: Tensor) -> None:
    if key.part == "untrained":
        parts.ignored.append(name)
        return
    module = parts.modules.setdefault(key.path, {})
    if key.part not in module:
        module[key.part] = tensor
        parts.names[key.path, key.part] = name
        parts.wraps[key.path, key.part] = key.wrap
    elif torch.equal(module[key.part], tensor):  # bias=all saves a trained head's bias twice
        plain = not key.wrap and parts.wraps[key.path, key.part] == "modules_to_save"
        parts.ignored.append(parts.name(key.path, key.part) if plain else name)
        if plain:  # the name that PEFT reads
            parts.names[key.path, key.part], parts.wraps[key.path, key.part] = name, key.wrap
    else:
        parts.problems.append(
            Problem(f"says otherwise than {parts.name(key.path, key.part)}", name)
        )


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
