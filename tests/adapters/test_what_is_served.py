"""PEFT's methods and fields: what is refused, by name; and that docs/adapters.md has them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app.adapters.config.read_recipe import read_recipe
from app.adapters.methods.table import METHODS, REFUSED_METHODS
from app.adapters.recipe import Options
from tests import kinds

DOCS = Path("docs/adapters.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alora_invocation_tokens", [5, 6]),
        ("arrow_config", {"top_k": 2}),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("megatron_config", {"a": 1}),
        ("monteclora_config", {"num_samples": 2}),
        ("target_parameters", ["mlp.weight"]),
        ("use_qalora", True),
        ("velora_config", {"num_groups": 2}),
        ("a_field_of_tomorrow", 0.5),
    ],
)
def test_a_field_that_is_not_served_is_named_and_is_fine_where_it_is_off(
    name: str, value: Any
) -> None:
    problems = read_recipe({"peft_type": "LORA", name: value}, {}, {}, Options()).problems
    assert [name in p.reason for p in problems] == [True]
    for off in (None, False, [], {}):
        assert not read_recipe({"peft_type": "LORA", name: off}, {}, {}, Options()).problems


def test_the_docs_name_every_method_and_field() -> None:
    refused = {name for method in METHODS.values() for name in method.refused}
    for name in [*METHODS, *REFUSED_METHODS, *refused]:
        assert name in DOCS, name


def test_the_docs_name_every_kind_that_is_compared_with_peft() -> None:
    cells = {
        kind.strip()
        for line in DOCS.splitlines()
        if line.startswith("|")
        for part in line.rstrip("|").rsplit("|", 1)[-1].split(";")
        for kind in (part, *part.split(","))
    }
    assert set(kinds.KINDS) <= cells


def test_every_test_that_the_docs_name_is_there() -> None:
    written = "".join(p.read_text(encoding="utf-8") for p in Path("tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_[a-z0-9_]+)`", DOCS):
        assert f"def {name}(" in written, name
