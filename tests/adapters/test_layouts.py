"""A tensor's name -> its module and part, in every layout; what means nothing is named."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from app.adapters.layouts import Parts, plain_name, read_names
from app.adapters.letters import canonical, letter_order
from app.adapters.methods.layer import Layer
from app.adapters.methods.table import METHODS, SUFFIXES, method_of_embedding, method_of_linear
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Misfit
from tests.adapters.made import tiny_base

BASE = tiny_base()
Q = "encoder.layer.0.attention.self.query"
DENSE = "encoder.layer.0.intermediate.dense"
WORDS = "embeddings.word_embeddings"
P = "base_model.model."
PEFT = Recipe(configured=True, alpha=1.0)


def parts_of(*names: str, recipe: Recipe = PEFT) -> Parts:
    """Tensors that differ, so that none repeats another."""
    return read_names({n: torch.full((2, 2), float(i)) for i, n in enumerate(names)}, recipe, BASE)


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        (f"{P}{Q}.lora_A.weight", Q, "A"),
        (f"{P}bert.{Q}.lora_A.weight", f"bert.{Q}", "A"),
        (f"{P}{Q}.lora_B.default.weight", Q, "B"),
        (f"{P}{Q}.lora_B.bias", Q, "B.bias"),
        (f"_orig_mod.{Q}.lora_A.weight", Q, "A"),
        (f"{P}0.auto_model.{Q}.lora_A.weight", Q, "A"),
        (f"{P}{Q}.lora_magnitude_vector", Q, "magnitude"),
        (f"{P}{Q}.lora_magnitude_vector.weight", Q, "magnitude"),
        (f"{P}{Q}.lora_diag", Q, "diag"),
        (f"{P}{WORDS}.lora_embedding_A", WORDS, "embedding_A"),
        (f"{P}{WORDS}.token_adapter.trainable_tokens_delta", WORDS, "tokens"),
        (f"{P}{WORDS}.trainable_tokens_delta.default", WORDS, "tokens"),
        (f"{P}{Q}.hada_w1_a", Q, "hada_w1_a"),
        (f"{P}{Q}.lokr_w2_b", Q, "lokr_w2_b"),
        (f"{P}{Q}.oft_R.weight", Q, "oft_R"),
        (f"{P}{Q}.lora_E", Q, "E"),
        ("base_model.vera_A", "base_model", "vera_A"),
        (f"{P}{Q}.base_layer.bias", Q, "bias"),
        (f"{P}{WORDS}.token_adapter.base_layer.weight", WORDS, "weight"),
        (f"{P}{DENSE}.modules_to_save.weight", DENSE, "weight"),
        (f"{P}{DENSE}.modules_to_save.default.weight", DENSE, "weight"),
        (f"{P}bert.pooler.modules_to_save.dense.weight", "bert.pooler.dense", "weight"),
        (f"{P}classifier.weight", "classifier", "weight"),
    ],
)
def test_pefts_names_are_understood(name: str, path: str, part: str) -> None:
    parts = parts_of(name)
    assert (parts.layout, list(parts.modules), list(parts.modules[path])) == (
        "peft",
        [path],
        [part],
    )
    assert parts.name(path, part) == name
    assert not list(parts.problems)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        ((f"{Q}.lora_A", f"{Q}.lora_B"), "loralib"),
        ((f"{Q}.lora.A", f"{Q}.lora.B", f"{Q}.linear.weight"), "tutorial"),
        ((f"{Q}.parametrizations.weight.0.lora_A", f"{Q}.parametrizations.weight.0.lora_B"), "minlora"),
        ((f"{Q}.loras.x.lora_A", f"{Q}.loras.x.lora_B"), "adapters"),
    ],
)  # fmt: skip
def test_other_layouts_are_told_by_their_names(names: tuple[str, ...], layout: str) -> None:
    recipe = Recipe(alpha=1.0, layout="tutorial" if layout == "tutorial" else None)
    parts = parts_of(*names, recipe=recipe)
    assert (parts.layout, set(parts.modules)) == (layout, {Q})
    assert {"A", "B"} <= set(parts.modules[Q])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"{P}{Q}.lora_Z", "no tensor that this server knows"),
        (f"{P}{Q}.oft_R", "no tensor that this server knows"),
        (f"{P}{Q}.hada_w1_a.weight", "no tensor that this server knows"),
        (f"{P}{Q}.oft_r", "before 0.16"),
        (f"{P}classifier.modules_to_save.lora_A.weight", "trained whole"),
    ],
)
def test_a_name_that_means_nothing_is_a_problem(name: str, told: str) -> None:
    problem = next(iter(parts_of(name, f"{P}{Q}.lora_A.weight").problems))
    assert told in problem.reason
    assert problem.tensor == name


@pytest.mark.parametrize(
    ("names", "recipe", "told"),
    [
        ((f"{P}{Q}.lora_A.a.weight", f"{P}{Q}.lora_B.b.weight"), PEFT, "several adapters: a, b"),
        ((f"{P}{Q}.lora_A.weight", f"{Q}.lora.B"), PEFT, "mixes the keys of peft and tutorial"),
        ((f"{P}{Q}.lora_A.weight",), Recipe(layout="tutorial"), "layout=tutorial"),
        ((f"{Q}.lora_A", f"{P}{Q}.lora_B.weight"), Recipe(kind="ADALORA"), "no .weight"),
    ],
)
def test_names_of_two_kinds_are_refused(names: tuple[str, ...], recipe: Recipe, told: str) -> None:
    with pytest.raises(AdapterRejected, match=told):
        parts_of(*names, recipe=recipe)


def test_bare_matrices_are_adaloras_where_its_config_says_so() -> None:
    names = (f"{P}{Q}.lora_A", f"{P}{Q}.lora_B")
    assert parts_of(*names, recipe=Recipe(kind="ADALORA", configured=True)).layout == "peft"
    assert parts_of(*names).layout == "loralib"


def test_of_two_equal_tensors_the_one_that_peft_reads_is_used() -> None:
    same = torch.ones(2)
    names = (f"{P}classifier.modules_to_save.bias", f"{P}classifier.bias")
    for order in (names, names[::-1]):
        parts = read_names(dict.fromkeys(order, same), PEFT, BASE)
        assert (parts.name("classifier", "bias"), parts.ignored) == (names[1], [names[0]])
    assert next(iter(parts_of(*names).problems)).reason.startswith("says otherwise")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (f"{Q}.lora_A.default.weight", f"{P}{Q}.lora_A.weight"),
        (f"{P}{Q}.lora_A.weight", f"{P}{Q}.lora_A.weight"),
        ("base_model.model.vera_A", "base_model.vera_A"),
        (f"{P}classifier.modules_to_save.default.bias", f"{P}classifier.bias"),
        (f"{P}classifier.original_module.bias", None),
    ],
)
def test_a_name_goes_out_as_peft_spells_it(name: str, plain: str | None) -> None:
    assert plain_name(name, BASE) == plain


def layer(*parts: str) -> Layer:
    return Layer(Q, dict.fromkeys(parts, torch.ones(1)), torch.ones(2, 2), None)


@pytest.mark.parametrize("name", METHODS)
def test_a_layers_tensors_tell_its_method(name: str) -> None:
    method, recipe = METHODS[name], Recipe(kind=name, configured=True)
    if method.linear:
        assert method_of_linear(layer(*method.linear.values()), recipe) is method
    if method.embedding:
        assert method_of_embedding(layer(*method.embedding.values()), recipe) is method
    assert method_of_linear(layer("weight", "bias"), recipe) is None


@pytest.mark.parametrize(
    ("parts", "recipe", "told"),
    [
        (("A", "hada_w1_a"), PEFT, "mixes the tensors of LOHA and LORA"),
        (("hada_w1_a",), PEFT, "is LOHA's, and the config's peft_type is LORA"),
        (("hada_w1_a",), Recipe(), "is LOHA's, whose adapter_config.json is needed"),
        (("A", "B"), Recipe(kind="ADALORA", configured=True), "is LORA's"),
        (("embedding_A",), PEFT, "does not belong"),
    ],
)
def test_another_methods_tensors_are_refused(
    parts: tuple[str, ...], recipe: Recipe, told: str
) -> None:
    with pytest.raises(Misfit, match=told):
        method_of_linear(layer(*parts), recipe)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_numbers_have_pefts_defaults(name: str) -> None:
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[name]  # type: ignore[index]
    defaults = {f.name: f.default for f in fields(config)}
    assert {n: defaults[n] for n in METHODS[name].numbers} == METHODS[name].numbers
    assert METHODS[name].alpha in defaults or not METHODS[name].free_scale


def test_no_two_methods_call_one_tensor_differently() -> None:
    for method in METHODS.values():
        for suffix, part in {**method.linear, **method.embedding, **method.shared}.items():
            assert SUFFIXES[suffix] == part


def pair(a: tuple[int, int], b: tuple[int, int]) -> dict[str, Tensor]:
    return {"A": torch.ones(a), "B": torch.ones(b)}


@pytest.mark.parametrize(
    ("pairs", "layout"),
    [
        ({DENSE: pair((4, 64), (32, 4))}, "tutorial"),
        ({DENSE: pair((32, 4), (4, 64))}, "tutorial-swapped"),
        ({DENSE: pair((4, 64), (32, 4)), Q: pair((4, 32), (32, 4))}, "tutorial"),
        ({DENSE: pair((7, 7), (9, 9))}, "tutorial"),  # each misfit is named later
        ({"nowhere": pair((4, 4), (4, 4))}, "tutorial"),
    ],
)
def test_shapes_tell_the_tutorials_two_letter_orders_apart(
    pairs: dict[str, dict[str, Tensor]], layout: str
) -> None:
    assert letter_order(pairs, Recipe(), BASE) == layout


def test_of_square_layers_alone_the_query_has_to_say_the_letter_order() -> None:
    pairs = {Q: pair((32, 32), (32, 32))}
    with pytest.raises(AdapterRejected, match="letter orders"):
        letter_order(pairs, Recipe(), BASE)
    for layout in ("tutorial", "tutorial-swapped"):
        assert letter_order(pairs, Recipe(layout=layout), BASE) == layout


def test_both_letter_orders_are_one_update() -> None:
    first, second = torch.randn(4, 64), torch.randn(32, 4)  # y += x second first
    for layout, A, B in (("tutorial", first, second), ("tutorial-swapped", second, first)):
        a, b = canonical(A, B, layout)  # type: ignore[arg-type]
        assert torch.equal(b @ a, (second @ first).T)
