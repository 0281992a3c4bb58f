"""What the config targets, by PEFT's own check; and what of it the file lacks or has too much
of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from app.adapters.layouts import read_names
from app.adapters.recipe import Recipe, Targeting
from app.adapters.refusals import Problems
from app.adapters.targets import check_targets, is_target, lost_biases
from tests.adapters.made import TINY_LINEARS, tiny_base

BASE = tiny_base()
P = "base_model.model."
Q0, Q1 = (f"encoder.layer.{i}.attention.self.query" for i in (0, 1))
NORM = "encoder.layer.0.output.LayerNorm"
TARGETS = Targeting(target_modules=("query",))
RECIPE = Recipe(configured=True, alpha=1.0, targeting=TARGETS)
NAMES = st.sampled_from(["query", "self.query", "dense", "output.dense", "uery", Q1, "layer"])
EXPRESSIONS = st.sampled_from(
    [r".*query", r".*layer\.1.*dense", "query", r".*\.(key|value)", "all"]
)


@settings(max_examples=300, deadline=None)
@given(
    targets=st.one_of(st.lists(NAMES, min_size=1, max_size=3), EXPRESSIONS),
    excluded=st.one_of(st.none(), st.lists(NAMES, min_size=1, max_size=2), EXPRESSIONS),
    layers=st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=1, max_size=2)),
    pattern=st.sampled_from([None, "layer", "encoder"]),
    path=st.sampled_from(sorted(TINY_LINEARS)),
)
def test_a_layer_is_targeted_where_peft_targets_it(
    targets: Any, excluded: Any, layers: Any, pattern: Any, path: str
) -> None:
    if isinstance(targets, str):  # PEFT refuses these beside an expression
        layers = None
    pattern = pattern if layers else None
    config = LoraConfig(target_modules=targets, exclude_modules=excluded,
                        layers_to_transform=layers, layers_pattern=pattern)  # fmt: skip
    theirs = check_target_module_exists(config, path)
    recipe = Recipe(
        targeting=Targeting(
            targets if isinstance(targets, str) else tuple(targets),
            excluded if isinstance(excluded, str | None) else tuple(excluded),
            layers_to_transform=tuple(layers) if layers else None,
            layers_pattern=(pattern,) if pattern else (),
        )
    )
    assert is_target(recipe, BASE, path, path) == bool(theirs)


def lora(*paths: str) -> list[str]:
    return [f"{P}{path}.lora_{letter}.weight" for path in paths for letter in "AB"]


def problems_of(names: list[str], recipe: Recipe = RECIPE) -> list[tuple[str, str | None]]:
    tensors = {name: torch.full((2, 2), float(i)) for i, name in enumerate(names)}
    parts, problems = read_names(tensors, recipe, BASE), Problems()
    targets = {path: t for path in parts.modules if (t := BASE.resolve(path)) is not None}
    check_targets(recipe, BASE, parts, targets, problems)
    return [(p.reason, p.tensor) for p in problems]


def test_a_file_that_is_all_of_its_config_has_no_problem() -> None:
    assert problems_of(lora(Q0, Q1)) == []
    assert problems_of(lora(f"bert.{Q0}", f"bert.{Q1}")) == []
    assert problems_of(lora(Q0), Recipe()) == []


WHOLE = replace(RECIPE, targeting=replace(TARGETS, modules_to_save=("LayerNorm",)))
LN = Recipe(kind="LN_TUNING", configured=True, targeting=Targeting(target_modules=("LayerNorm",)))


@pytest.mark.parametrize(
    ("names", "recipe", "told", "tensor"),
    [
        (lora(Q0), RECIPE, "is targeted by the config", Q1),
        (lora(Q0, Q1, "pooler.dense"), RECIPE, "not among the layers", lora("pooler.dense")[0]),
        (lora(Q0, f"bert.{Q1}"), RECIPE, "some without", None),
        (lora(Q0, Q1), replace(RECIPE, targeting=Targeting()), "does not say target_modules", None),
        (lora(Q0, Q1), replace(RECIPE, tokens=(1, 2)), "rows are not in the file", None),
        (lora(Q0, Q1), replace(RECIPE, tokens={"words": (1,)}), "rows are not", "words"),
        (lora(Q0, Q1), WHOLE, "modules_to_save, but not in the file", NORM),
        (lora(Q0, Q1), replace(RECIPE, bias="lora_only"), "bias=lora_only", f"{Q0}.bias"),
        (lora(Q0, Q1), replace(RECIPE, bias="all"), "bias=all", f"{NORM}.bias"),
        ([*lora(Q0, Q1), f"{P}{Q0}.bias"], RECIPE, "not where the config puts", f"{P}{Q0}.bias"),
        ([f"{P}{NORM}.ln_tuning_layers.weight"], LN, "is targeted", "encoder.layer.1.output.LayerNorm"),
        ([f"{P}{NORM}.weight"], LN, "is targeted", NORM),
    ],
)  # fmt: skip
def test_what_is_missing_or_too_much_is_named(
    names: list[str], recipe: Recipe, told: str, tensor: str | None
) -> None:
    assert any(told in reason and at == tensor for reason, at in problems_of(names, recipe))


def test_biases_that_an_older_peft_never_saved_are_no_problem() -> None:
    recipe = replace(RECIPE, bias="lora_only", biases_saved=False)
    parts = read_names({n: torch.ones(2) * i for i, n in enumerate(lora(Q0, Q1))}, recipe, BASE)
    assert lost_biases(recipe, parts)
    assert problems_of(lora(Q0, Q1), recipe) == []
