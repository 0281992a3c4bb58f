"""Which base an adapter was made for, in words: from its config, its names and its shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from app.adapters.base import Base
from app.adapters.config.recipe import Recipe
from app.adapters.layouts import Parts
from app.adapters.refusals import Problem

SELF_INPUT = re.compile(r"(query|key|value|[qkv]_lin|Wqkv)$")  # layers that read the hidden width
LAYER = re.compile(r"(?:layers?|albert_layers)\.(\d{1,3})\.")
# What a base's name says beyond doubt. Many a "…bert" is a RoBERTa, and some a "roberta" a BERT
# (hfl/chinese-roberta-wwm-ext), so only whole, well-known beginnings count.
FAMILIES = (
    (re.compile(r"^(facebook-)?xlm-(roberta|r)\b"), "xlm-roberta"),
    (re.compile(r"^(distil)?roberta-(base|large)$"), "roberta"),
    (re.compile(r"^bert-(base|large)-(un)?cased$"), "bert"),
    (re.compile(r"^distilbert-"), "distilbert"),
    (re.compile(r"^(google-)?electra-"), "electra"),
    (re.compile(r"^albert-"), "albert"),
    (re.compile(r"^camembert-"), "camembert"),
    (re.compile(r"^modernbert-"), "modernbert"),
    (re.compile(r"^m?deberta-"), "deberta"),
    (re.compile(r"^(paraphrase-|all-)?mpnet-"), "mpnet"),
)
HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
CACHED = re.compile(r"(^|/)models--(?P<name>[^/]+)/snapshots/")
NAMES = {
    "roberta": re.compile(r"^roberta\."),
    "distilbert": re.compile(r"^distilbert\.|(^|\.)transformer\.layer\."),
    "electra": re.compile(r"^electra\."),
    "albert": re.compile(r"^albert\.|(^|\.)albert_layer_groups\."),
    "modernbert": re.compile(r"\.attn\.Wqkv$"),
    "deberta": re.compile(r"^deberta\.|\.(query|key|value)_proj$"),
    "mpnet": re.compile(r"^mpnet\.|\.attention\.attn\.[qkvo]$"),
    "bert": re.compile(r"^bert\."),
}


def other_base(recipe: Recipe, base: Base) -> str | None:
    """Why the adapter is another base's, by what its configs say; None: they do not say so.

    The class that PEFT noted at training counts before the base's name.
    """
    type_ = recipe.model_config.get("model_type")
    if isinstance(type_, str) and type_ != base.model_type:
        return f"made for a {type_} model, as its config.json says; this base is {base.model_type}"
    if recipe.made_for_type is not None:
        if recipe.made_for_type != base.model_type:
            return (
                f"made for a {recipe.made_for_type} model, as its adapter_config.json's auto_mapping "
                f"says; this base is {base.model_type}"
            )
    elif recipe.made_for is not None:
        name = PurePath(recipe.made_for.replace("\\", "/")).name.lower()
        family = next((family for pattern, family in FAMILIES if pattern.search(name)), None)
        if family is not None and family != base.model_type:
            return (
                f"made for {recipe.made_for}, a {family} model, as its adapter_config.json says; this "
                f"base is {base.model_type} (if it is not so, correct base_model_name_or_path)"
            )
    faults = list(_other_sizes(recipe, base))
    return (
        f"made for another base, as its config.json says: {'; '.join(faults)}" if faults else None
    )


def made_for_another(made_for: str | None, base_id: str, folder: Path) -> list[str]:
    """A warning where the config names another base. folder: the base's.

    Folders and organisations differ for the same base, so only a hub's name is compared with whatever
    this base is called, and a folder's only where both have well-known names.
    """
    if not made_for:
        return []
    theirs = _cached(made_for) or PurePath(made_for.replace("\\", "/")).name
    mine = _cached(str(folder)) or PurePath(base_id).name
    hub = HUB_ID.fullmatch(made_for) is not None or _cached(made_for) is not None
    known = all(any(p.search(n.lower()) for p, _ in FAMILIES) for n in (theirs, mine))
    if theirs.lower() == mine.lower() or not (hub or known):
        return []
    return [f"made for {made_for!r:.200}, as its config says; its shapes fit this base, {base_id}"]


def _cached(path: str) -> str | None:
    """The model's name where the path lies in the hub's cache, which has commits for folders."""
    found = CACHED.search(path.replace("\\", "/"))
    return found["name"].rsplit("--", 1)[-1] if found else None


def _other_sizes(recipe: Recipe, base: Base) -> Iterator[str]:
    sizes = {
        "vocab_size": base.vocabulary,
        "hidden_size": base.hidden,
        "num_hidden_layers": base.layers,
    }
    for name, mine in sizes.items():
        said = recipe.model_config.get(name)
        if type(said) is int and said != mine:
            yield f"its {name} is {said}, this base's {mine}"


def _family_of_names(parts: Parts, base: Base) -> str | None:
    """Another architecture's, where its prefix or its layers' names are in the file; else None."""
    for family, pattern in NAMES.items():
        mine = base.model_type == family or (base.prefix == "roberta" and family == "roberta")
        if not mine and any(pattern.search(path) for path in parts.modules):
            return family
    return None


def whole_checkpoint(parts: Parts, recipe: Recipe, base: Base) -> str | None:
    """Why the file is no adapter: it holds a model's own layers, and no change of any; else None."""
    said = {part for module in parts.modules.values() for part in module}
    stack = [p for p, module in parts.modules.items() if "weight" in module and LAYER.search(p)]
    if recipe.configured or said - {"weight", "bias"} or len(stack) < 4 * base.layers:
        return None
    return (
        f"this is a whole checkpoint ({len(stack)} layers' own weights), not an adapter: 'bert-lora extract "
        "CHECKPOINT OUT --rank 16' makes an adapter of one that was fine-tuned from this base; any "
        "other is served as a base of its own (BERT_LORA_MODEL)"
    )


def summary(parts: Parts, recipe: Recipe, base: Base, problems: list[Problem]) -> str:
    """In words where the whole file is for another base, or its config is at fault; else a count."""
    if not any(problem.tensor for problem in problems):
        return "the adapter's configuration cannot be served"
    family = _family_of_names(parts, base)
    if family is not None:
        return (
            f"made for a {family} model, as its tensors' names say; this base is {base.described}"
        )
    widths = {
        module["A"].shape[-1]
        for path, module in parts.modules.items()
        if SELF_INPUT.search(path) and "A" in module and module["A"].dim() == 2
        if recipe.blocks is None and recipe.layout in (None, "peft")
    }
    numbers = [int(n) for path in parts.modules for n in LAYER.findall(path)]
    tables = {
        module[name].shape[part]
        for path, module in parts.modules.items()
        if path.endswith("word_embeddings")
        for name, part in (("embedding_A", 1), ("weight", 0))
        if name in module and module[name].dim() == 2
    }
    wrong_width = len(widths) == 1 and widths != {base.hidden}
    missing = {
        int(n) for p in problems if p.tensor in base.linears for n in LAYER.findall(p.tensor or "")
    }
    shallower = bool(numbers) and missing == set(range(max(numbers) + 1, base.layers)) != set()
    wrong_depth = bool(numbers) and (max(numbers) >= base.layers or shallower)
    wrong_vocabulary = len(tables) == 1 and tables != {base.vocabulary}
    if not (wrong_width or wrong_depth or wrong_vocabulary):
        return (
            f"{len(problems)} tensors of the file cannot be served on this base ({base.described})"
        )
    said = [f"{min(widths)}-wide"] if len(widths) == 1 else []
    said += [f"{max(numbers) + 1}-layer"] if numbers else []
    said += [f"{min(tables)}-token vocabulary"] if wrong_vocabulary else []
    mine = f"{base.described} with {base.vocabulary} tokens" if wrong_vocabulary else base.described
    who = recipe.made_for or "another base"
    return f"made for {who} ({', '.join(said)}); this base is {mine}"
