"""Every value of a closed set has its own branch; one that nobody listed falls through to
nothing.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from app.adapters.config.labels import scores_of
from app.adapters.config.read_recipe import LAYOUTS, TASKS
from app.adapters.heads import SEQUENCE_HEADS, TOKEN_HEADS
from app.adapters.letters import Layout, Letters, canonical
from app.adapters.methods.table import METHODS, REFUSED_METHODS
from app.adapters.peft_folder import TASK_TYPES
from app.adapters.recipe import PROBLEM_TYPES
from app.adapters.sentence import POOLING_MODES, POOLING_NAMES, Pooling, Sentence
from app.adapters.values import ProblemType, Scores, Source, Task
from app.api.routes.uploads import UploadQuery
from app.catalog.draw import same
from app.model.base_model import SERVED
from app.model.head import pool, scores
from app.model.sequence import Wanted
from app.tools import certify

ROWS = torch.tensor([[1.0, 5.0], [4.0, 0.0], [3.0, 2.0]])
ROOT = Path(__file__).parent.parent


def certified(pooling: Any) -> torch.Tensor:
    output = SimpleNamespace(last_hidden_state=ROWS[None], pooler_output=ROWS[None, 1])
    return certify._pooled(output, Sentence(pooling, False))


POOLED = {"mean": [8 / 3, 7 / 3], "cls": [1, 5], "last": [3, 2], "max": [4, 5], "pooler": [4, 0]}


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_each_pooling_is_its_own(pooling: Pooling) -> None:
    assert certified(pooling).tolist() == pytest.approx(POOLED[pooling])
    if pooling != "pooler":
        pooled = pool(ROWS, np.array([0]), np.array([len(ROWS)]), pooling)
        assert pooled[0].tolist() == pytest.approx(POOLED[pooling])


UNLISTED: dict[str, Callable[[Any], Any]] = {
    "pool": lambda value: pool(ROWS, np.array([0]), np.array([2]), value),
    "certify's pooling": certified,
    "scores": lambda value: scores(ROWS[0], value),
    "scores_of": lambda value: scores_of(value, 2),
    "canonical": lambda value: canonical(ROWS, ROWS, value),
    "same": lambda value: same(ROWS, ROWS, value),
}


@pytest.mark.parametrize("where", UNLISTED)
def test_a_value_that_nobody_listed_is_an_error_and_not_another_ones(where: str) -> None:
    with pytest.raises(AssertionError):
        UNLISTED[where]("weightedmean")


def test_each_table_has_each_value() -> None:
    assert not set(METHODS) & set(REFUSED_METHODS)
    assert set(PROBLEM_TYPES) == set(get_args(ProblemType))
    assert set(PROBLEM_TYPES.values()) == set(get_args(Scores))
    assert set(TASKS.values()) - {None} == set(TASK_TYPES) == set(certify.CLASSES)
    assert set(certify.CLASSES) == set(get_args(Task))
    assert set(POOLING_MODES.values()) == set(POOLING_NAMES.values())
    assert set(POOLING_NAMES.values()) | {"pooler"} == set(get_args(Pooling))
    assert set(SEQUENCE_HEADS) == set(TOKEN_HEADS) == set(SERVED)
    sources = {keys.source for keys in (*SEQUENCE_HEADS.values(), *TOKEN_HEADS.values())}
    assert sources <= {*get_args(Source), "classifier_pooling"}
    assert {*get_args(Letters), *LAYOUTS} <= set(get_args(Layout))
    assert get_args(Wanted) == ("embedding", "logits", "states")


def test_a_query_can_say_what_an_adapter_can_be() -> None:
    fields = UploadQuery.model_fields
    for name, values in (
        ("problem_type", get_args(ProblemType)),
        ("task", get_args(Task)),
        ("pooling", get_args(Pooling)),
        ("layout", LAYOUTS),
    ):
        listed, none = get_args(fields[name].annotation)
        assert (set(get_args(listed)), none) == (set(values), type(None)), name


def functions() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("bert_lora/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_every_match_ends_in_assert_never() -> None:
    found = 0
    for name, function in functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Match):
                found += 1
                last = node.cases[-1]
                assert isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None, name
                assert "assert_never" in ast.dump(last.body[0]), name
    assert found >= 14


def test_no_choice_between_a_sets_values_is_a_chain_of_ifs() -> None:
    """Two ifs in a function that compare the same thing with different words are a match."""
    chains = []
    for name, function in functions():
        compared: dict[str, set[str]] = defaultdict(set)
        for node in ast.walk(function):
            if not isinstance(node, ast.If | ast.IfExp):
                continue
            test = node.test
            if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
                right = test.comparators[0]
                if isinstance(right, ast.Constant) and isinstance(right.value, str):
                    compared[ast.unparse(test.left)].add(right.value)
        chains += [(name, what, said) for what, said in compared.items() if len(said) > 1]
    assert chains == []
