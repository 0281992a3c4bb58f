"""A task is looked up by its name; who may not use its adapter is not told of it."""

from __future__ import annotations

import pytest

from app.inference.caller import Caller, Key
from app.inference.errors import Invalid
from app.inference.tasks import Task, find_task, usable_tasks

TASKS = {
    "query": Task(adapter="search", prompt="find: "),
    "bare": Task(prompt="a "),
    "alike": Task(adapter="sts", pooling="cls"),
}
LIMITED = Caller(Key("k", b"", admin=False, adapters=("sea*",)))


def test_a_task_is_found_by_its_name_and_no_name_is_one_that_changes_nothing() -> None:
    assert find_task(TASKS, "query", Caller()) is TASKS["query"]
    assert find_task(TASKS, None, Caller()) == Task(adapter=None, prompt=None, pooling=None)


def test_a_key_is_told_of_the_tasks_whose_adapters_it_may_use() -> None:
    assert list(usable_tasks(TASKS, Caller())) == ["alike", "bare", "query"]
    assert list(usable_tasks(TASKS, LIMITED)) == ["bare", "query"]
    with pytest.raises(Invalid, match=r"task is 'other'; this server names bare, query$"):
        find_task(TASKS, "other", LIMITED)


def test_an_endless_name_is_not_given_back() -> None:
    with pytest.raises(Invalid) as refused:
        find_task({}, "x" * 1_000_000, Caller())
    assert len(str(refused.value)) < 300


def test_a_task_fits_its_own_adapter_and_one_without_fits_any() -> None:
    assert TASKS["query"].fits([]) and TASKS["query"].fits(["search"])
    assert not TASKS["query"].fits(["search", "sts"])
    assert TASKS["bare"].fits(["search", "sts"])
