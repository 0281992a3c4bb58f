"""Which base an adapter was made for, in words: from its config, its names and its shapes."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from app.adapters.base import Base
from app.adapters.layouts import Parts
from app.adapters.methods.table import WHOLE
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Problem

SELF_INPUT = re.compile(
    r"(query|key|value|[qkv]_(lin|proj)|Wqkv)$"
)  # layers that read the hidden width
LAYER = re.compile(r"(?:layers?|albert_layers)\.(\d{1,3})\.")
# What a base's name says beyond doubt. Many a "…bert" is a RoBERTa, and some a "roberta" a BERT
# (hfl/chinese-roberta-wwm-ext), so only whole, well-known beginnings count.
FAMILIES = (
    (re.compile(r"^(facebook-)?xlm-(roberta|r)-xx?l\b"), "xlm-roberta-xl"),
    (re.compile(r"^(facebook-)?xlm-(roberta|r)\b"), "xlm-roberta"),
    (re.compile(r"^(distil)?roberta-(base|large)$"), "roberta"),
    (re.compile(r"^bert-(base|large)-(un)?cased$"), "bert"),
    (re.compile(r"^distilbert-"), "distilbert"),
    (re.compile(r"^(google-)?electra-"), "electra"),
    (re.compile(r"^albert-"), "albert"),
    (re.compile(r"^camembert-"), "camembert"),
    (re.compile(r"^modernbert-"), "modernbert"),
    (re.compile(r"^jina-embeddings-v3\b"), "jina_embeddings_v3"),
    (re.compile(r"^nomic-embed-text-v1(\.5)?$"), "nomic_bert"),
    (re.compile(r"^gte-multilingual-(base|reranker-base)$"), "gte"),
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
    "nomic_bert": re.compile(r"^nomic_bert\."),
    "gte": re.compile(r"^gte\."),
    "bert": re.compile(r"^bert\."),
}


def refuse_other_base(recipe: Recipe, base: Base) -> None:
    """Raises AdapterRejected where the adapter's configs say that it is another base's."""
    reason = _other_type(recipe, base) or _other_sizes(recipe, base)
    if reason is not None:
        raise AdapterRejected(reason)


def _other_type(recipe: Recipe, base: Base) -> str | None:
    """By model_type. The class that PEFT noted at training counts before the base's name."""
    type_ = recipe.model_config.get("model_type")
    if isinstance(type_, str) and type_ != base.model_type:
        return f"made for a {type_} model, as its config.json says; this base is {base.model_type}"
    if recipe.made_for_type is not None:
        if recipe.made_for_type == base.model_type.replace("_", "-"):
            return None
        return (
            f"made for a {recipe.made_for_type} model, as its adapter_config.json's auto_mapping "
            f"says; this base is {base.model_type}"
        )
    name = PurePath((recipe.made_for or "").replace("\\", "/")).name.lower()
    family = next((family for pattern, family in FAMILIES if pattern.search(name)), None)
    if family in (None, base.model_type):
        return None
    return (
        f"made for {recipe.made_for}, a {family} model, as its adapter_config.json says; this "
        f"base is {base.model_type} (if it is not so, correct base_model_name_or_path)"
    )


def _other_sizes(recipe: Recipe, base: Base) -> str | None:
    """By the sizes in its config.json."""
    sizes = {
        "vocab_size": base.vocabulary,
        "hidden_size": base.hidden,
        "num_hidden_layers": base.layers,
    }
    theirs = {name: recipe.model_config.get(name) for name in sizes}
    faults = [
        f"its {name} is {theirs[name]}, this base's {size}"
        for name, size in sizes.items()
        if type(theirs[name]) is int and theirs[name] != size
    ]
    if not faults:
        return None
    return f"made for another base, as its config.json says: {'; '.join(faults)}"


def made_for_another(made_for: str | None, base_id: str, folder: Path) -> list[str]:
    """A warning where the config names another base. folder: the base's.

    Folders and organisations differ for the same base, so only a hub's name is compared with
    whatever this base is called, and a folder's only where both have well-known names.
    """
    if not made_for:
        return []
    theirs = _cached(made_for) or PurePath(made_for.replace("\\", "/")).name
    mine = _cached(str(folder)) or PurePath(base_id).name
    hub = HUB_ID.fullmatch(made_for) is not None or _cached(made_for) is not None
    famous = all(any(p.search(n.lower()) for p, _ in FAMILIES) for n in (theirs, mine))
    if theirs.lower() == mine.lower() or not (hub or famous):
        return []
    return [f"made for {made_for!r:.200}, as its config says; its shapes fit this base, {base_id}"]


def refuse_checkpoint(parts: Parts, recipe: Recipe, base: Base) -> None:
    """Raises AdapterRejected for a whole model: its own layers' weights, and no change of any."""
    modules = parts.modules.items()
    stack = [path for path, module in modules if "weight" in module and LAYER.search(path)]
    if recipe.configured or parts.all_parts() - WHOLE or len(stack) < 4 * base.layers:
        return
    raise AdapterRejected(
        f"this is a whole checkpoint ({len(stack)} layers' own weights), not an adapter: "
        "'bert-lora extract CHECKPOINT OUT --rank 16' makes an adapter of one that was fine-tuned "
        "from this base; any other is served as a base of its own (BERT_LORA_MODEL)"
    )


def summary(parts: Parts, recipe: Recipe, base: Base, problems: list[Problem]) -> str:
    """What to say of the problems: that the file is for another base, or a count of them."""
    if not any(problem.tensor for problem in problems):
        return "the adapter's configuration cannot be served"
    family = _family_of_names(parts, base)
    if family is not None:
        return (
            f"made for a {family} model, as its tensors' names say; this base is {base.described}"
        )
    widths, tables, depth = _widths(parts, recipe), _vocabularies(parts), _depth(parts)
    wrong_width = len(widths) == 1 and widths != {base.hidden}
    wrong_depth = depth > base.layers or _is_shallower(depth, base, problems)
    wrong_vocabulary = len(tables) == 1 and tables != {base.vocabulary}
    if not (wrong_width or wrong_depth or wrong_vocabulary):
        return (
            f"{len(problems)} tensors of the file cannot be served on this base ({base.described})"
        )
    sizes = [f"{min(widths)}-wide"] if len(widths) == 1 else []
    sizes += [f"{depth}-layer"] if depth else []
    sizes += [f"{min(tables)}-token vocabulary"] if wrong_vocabulary else []
    mine = f"{base.described} with {base.vocabulary} tokens" if wrong_vocabulary else base.described
    return f"made for {recipe.made_for or 'another base'} ({', '.join(sizes)}); this base is {mine}"


def _widths(parts: Parts, recipe: Recipe) -> set[int]:
    """How wide the hidden state is that the file's matrices read."""
    if recipe.blocks is not None or recipe.layout not in (None, "peft"):
        return set()
    matrices = {path: module.get("A") for path, module in parts.modules.items()}
    return {
        A.shape[-1]
        for path, A in matrices.items()
        if A is not None and A.dim() == 2 and SELF_INPUT.search(path)
    }


def _vocabularies(parts: Parts) -> set[int]:
    """How many tokens the file's embeddings are for."""
    return {
        module[part].shape[axis]
        for path, module in parts.modules.items()
        if path.endswith("word_embeddings")
        for part, axis in (("embedding_A", 1), ("weight", 0))
        if part in module and module[part].dim() == 2
    }


def _depth(parts: Parts) -> int:
    """How many layers the file's names count; 0: none."""
    return max((int(n) + 1 for path in parts.modules for n in LAYER.findall(path)), default=0)


def _is_shallower(depth: int, base: Base, problems: list[Problem]) -> bool:
    """Are all the layers that the base has more than the file, and no others, missing?"""
    missing = {
        int(n) for p in problems if p.tensor in base.linears for n in LAYER.findall(p.tensor or "")
    }
    return 0 < depth < base.layers and missing == set(range(depth, base.layers))


def _family_of_names(parts: Parts, base: Base) -> str | None:
    """Another architecture's, where its prefix or its layers' names are in the file; else None."""
    for family, pattern in NAMES.items():
        mine = base.model_type == family or (base.prefix == "roberta" and family == "roberta")
        if not mine and any(pattern.search(path) for path in parts.modules):
            return family
    return None


def _cached(path: str) -> str | None:
    """The model's name where the path lies in the hub's cache, which has commits for folders."""
    match = CACHED.search(path.replace("\\", "/"))
    return match["name"].rsplit("--", 1)[-1] if match else None
