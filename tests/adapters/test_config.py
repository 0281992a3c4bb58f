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
from app.adapters.methods.table import METHODS
from app.adapters.recipe import Options, Recipe
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


@pytest.mark.parametrize(
    ("config", "options", "alpha", "scale"),
    [
        ({"peft_type": "LORA", "lora_alpha": 4, "r": 2}, Options(), 4, 2),
        ({"peft_type": "LORA", "r": 2}, Options(), 8, 4),
        ({"peft_type": "LOHA", "alpha": 3, "r": 2}, Options(), 3, 1.5),
        ({"peft_type": "LOKR", "lora_alpha": 3, "r": 2}, Options(), 8, 4),
        ({"peft_type": "LORA", "lora_alpha": 4, "r": 2}, Options(scale=2), 4, 2),
        ({}, Options(alpha=6), 6, 3),
        ({"alpha": 6}, Options(), 6, 3),
        ({}, Options(scale=0.5), None, 0.5),
    ],
)
def test_alpha_comes_by_its_methods_own_name_or_from_the_query(
    config: dict[str, object], options: Options, alpha: float | None, scale: float
) -> None:
    recipe = read_recipe(config, {}, {}, options)
    assert (recipe.alpha, recipe.scaling("query", 2).scale) == (alpha, scale)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"peft_type": "LORA", "lora_alpha": 4, "r": 2}, Options(scale=3)),
        ({}, Options()),
        ({"peft_type": "LORA", "rank_pattern": {"(a?){100000}": 2}}, Options()),
        ({"peft_type": "LORA", "alpha_pattern": {"(": 2}}, Options()),
    ],
)
def test_a_scale_that_cannot_be_told_is_refused(
    config: dict[str, object], options: Options
) -> None:
    recipe = read_recipe(config, {}, {}, options)
    with pytest.raises(AdapterRejected):
        recipe.scaling("query", recipe.expected_rank("query") or 2)


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        ({"peft_type": "IA3"}, Options(scale=2), "has none that is free"),
        ({"peft_type": "LORA"}, Options(scale=2, alpha=8), "both alpha and scale"),
        ({"peft_type": "LORA", "r": 0}, Options(), "r=0"),
        ({"peft_type": "LORA", "lora_alpha": "big"}, Options(), "lora_alpha='big'"),
        ({"peft_type": "OFT", "eps": True}, Options(), "eps=True"),
        ({"peft_type": "VERA", "projection_prng_key": 1 << 64}, Options(), "projection_prng_key"),
        ({"peft_type": "LORA", "init_lora_weights": "corda"}, Options(), "changed base"),
        ({"peft_type": "LORA", "use_bdlora": {"nblocks": 0}}, Options(), "nblocks"),
        ({"peft_type": "LORA", "trainable_token_indices": ["a"]}, Options(), "token indices"),
        ({"peft_type": "LORA", "layers_to_transform": ["a"]}, Options(), "layers_to_transform"),
        ({"peft_type": "LORA", "modules_to_save": 3}, Options(), "modules_to_save"),
        ({"peft_type": "LORA", "task_type": "CAUSAL_LM"}, Options(), "task_type"),
        ({"peft_type": "LORA", "task_type": "SEQ_CLS"}, Options(task="tokens"), "task=tokens"),
        ({"peft_type": "LORA", "problem_type": "odd"}, Options(), "problem_type"),
        ({"peft_type": "LORA", "id2label": {"1": "a"}}, Options(), "id2label"),
        ({"peft_type": "LORA", "default_prompt_name": "q"}, Options(), "default_prompt_name"),
        ({"peft_type": "LORA", "prompts": {"q": "x" * 10_001}}, Options(), "prompts"),
        ({"peft_type": "LORA", "dimensions": [0]}, Options(), "dimensions"),
    ],
)
def test_a_field_that_makes_no_sense_is_a_problem_of_its_own(
    config: dict[str, object], options: Options, told: str
) -> None:
    problems = read_recipe(config, {}, {}, options).problems
    assert [told in problem.reason for problem in problems] == [True]


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"peft_type": "LOKR"}, True),
        ({"peft_type": "OFT"}, True),
        ({"peft_type": "OFT", "peft_version": "0.21.0"}, False),
        ({"peft_type": "LOHA"}, False),
    ],
)
def test_a_method_that_older_pefts_computed_otherwise_is_warned_of(
    config: dict[str, object], warned: bool
) -> None:
    assert bool(read_recipe(config, {}, {}, Options()).assumed) == warned
