"""Which requests take part in a trial, and how two versions' answers compare."""

from __future__ import annotations

import pytest
import torch

from app.catalog.draw import distance, same, takes_part
from app.catalog.pointer import Trial
from tests.catalog.versions import digest_for

USERS = [f"user{i}" for i in range(2_000)]


def canary(percent: float, version: int = 1) -> Trial:
    return Trial("canary", digest_for(version), percent, "x-user")


def test_a_share_of_the_users_takes_part_and_always_the_same_ones() -> None:
    part = {user for user in USERS if takes_part(canary(20), user)}
    assert part == {user for user in USERS if takes_part(canary(20), user)}
    assert 0.16 < len(part) / len(USERS) < 0.24


def test_who_takes_part_stays_in_as_the_share_grows() -> None:
    few, many = ({u for u in USERS if takes_part(canary(p), u)} for p in (10, 40))
    assert few < many


def test_another_version_draws_other_users() -> None:
    one, two = ({u for u in USERS if takes_part(canary(20, v), u)} for v in (1, 2))
    assert one - two and two - one


@pytest.mark.parametrize("value", [None, "user1"])
def test_all_take_part_at_100_percent(value: str | None) -> None:
    assert all(takes_part(canary(100), value) for _ in range(100))


def test_vectors_are_the_same_where_they_point_one_way() -> None:
    row = torch.tensor([3.0, 4.0])
    assert same(row, 2 * row, "embedding")
    assert not same(row, torch.tensor([4.0, -3.0]), "embedding")
    assert not same(row, torch.zeros(3), "embedding")


def test_token_states_are_the_same_where_each_points_one_way() -> None:
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert same(rows, 2 * rows, "states")
    assert not same(rows, torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "states")


def test_logits_are_the_same_where_the_best_label_is_of_every_word() -> None:
    row = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert same(row, row + torch.tensor([0.0, 0.5]), "logits")
    assert not same(row, row.flip(-1), "logits")


def test_a_single_score_is_compared_by_its_value() -> None:
    assert same(torch.tensor([100.0]), torch.tensor([100.9]), "logits")
    assert not same(torch.tensor([0.0]), torch.tensor([0.02]), "logits")


def test_the_distance_is_the_mean_of_relative_ones_and_none_between_shapes() -> None:
    rows = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]
    others = [torch.tensor([3.0, 9.0]), torch.tensor([1.0, 0.0])]
    assert distance(rows, others) == pytest.approx(0.5)
    assert distance(rows, [torch.zeros(3), rows[1]]) is None
