"""Scales and ranks by PEFT's own pattern function; every LoraConfig field has a decided fate."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.other import get_pattern_key

from app.adapters.config.peft_fields import EVERYWHERE
from app.adapters.config.read_recipe import read_recipe
from app.adapters.config.recipe import Options, Recipe
from app.adapters.methods.table import METHODS
from app.adapters.refusals import AdapterRejected

PATHS = [f"bert.encoder.layer.{i}.attention.self.{m}" for i in (0, 1, 11) for m in ("query", "key")]
PATTERNS = st.sampled_from(
    [
        "query",
        "self.query",
        "layer.1.attention.self.query",
        "uery",
        r"layer\.\d+\..*key",
        r"layer\.\d{1,2}\..*",
        ".*",
        "1",
    ]
)


@given(
    patterns=st.dictionaries(PATTERNS, st.integers(1, 64), max_size=4),
    path=st.sampled_from(PATHS),
    rslora=st.booleans(),
)
def test_scale_is_pefts(patterns: dict[str, int], path: str, rslora: bool) -> None:
    recipe = Recipe(alpha=16, rslora=rslora, alpha_pattern=patterns, rank_pattern=patterns, rank=8)
    key = get_pattern_key(list(patterns), path)
    alpha, rank = patterns.get(key, 16), patterns.get(key, 8)
    assert recipe.scaling(path, rank).scale == pytest.approx(
        alpha / (rank**0.5 if rslora else rank)
    )
    assert recipe.expected_rank(path) == rank


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_every_field_of_pefts_configs_is_decided(kind: str) -> None:
    method = METHODS[kind]
    decided = EVERYWHERE.union(method.without_effect, method.numbers, method.refused)
    fields = {f.name for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    assert fields <= decided


@pytest.mark.parametrize("kind", sorted(set(PEFT_TYPE_TO_CONFIG_MAPPING) - set(METHODS)))
def test_every_other_method_of_peft_is_refused_by_name(kind: str) -> None:
    with pytest.raises(AdapterRejected, match=kind):
        read_recipe({"peft_type": str(kind.value)}, {}, {}, Options())


def test_query_and_file_that_disagree_on_alpha_are_refused() -> None:
    assert read_recipe({"lora_alpha": 8}, {}, {}, Options(alpha=16)).problems
    assert read_recipe({"lora_alpha": 16}, {}, {}, Options(alpha=16)).alpha == 16


def test_metadata_stands_in_for_a_config() -> None:
    said = {"alpha": "32", "layout": "tutorial", "labels": "neg,pos", "format": "pt"}
    recipe = read_recipe({}, {}, said, Options())
    assert (recipe.alpha, recipe.layout, recipe.labels) == (32, "tutorial", ("neg", "pos"))


@pytest.mark.parametrize("config", [{"r": 8, "lora_alpha": 16}, {"peft_type": None, "r": 8}])
def test_a_config_that_names_no_method_is_read_as_lora_and_says_so(
    config: dict[str, object],
) -> None:
    assert any("peft_type" in said for said in read_recipe(config, {}, {}, Options()).assumed)


@pytest.mark.parametrize("config", [{}, {"peft_type": "LORA", "r": 8}])
def test_a_method_that_is_named_or_has_no_config_assumes_nothing(config: dict[str, object]) -> None:
    assert not read_recipe(config, {}, {}, Options()).assumed
