"""Fair order by tokens, at every fork of the tree of lines."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.turns import LineKey, Turns


def turns(**cost: float) -> Turns[str]:
    return Turns(cost)


def take(waiting: Turns[str], count: int) -> list[str]:
    waiting.begin()
    found = []
    for _ in range(count):
        found.append(waiting.peek()[2])
        waiting.pop()
    return found


def test_lines_share_by_tokens_and_not_by_turns() -> None:
    waiting = turns()
    for _ in range(100):
        waiting.add(("x", "long"), 30, "long")
        waiting.add(("x", "short"), 10, "short")
    counted = Counter(take(waiting, 80))
    assert abs(30 * counted["long"] - 10 * counted["short"]) <= 30


def test_who_was_idle_is_next_and_gets_no_credit_for_it() -> None:
    waiting = turns()
    for _ in range(1000):
        waiting.add(("x", "flood"), 10, "flood")
    for _ in range(100):
        take(waiting, 5)
    for _ in range(100):
        waiting.add(("x", "late"), 10, "late")
    following = take(waiting, 45)
    assert following[:5] == ["late"] * 5  # as much as the batch that is being served
    assert Counter(following[5:]) == {"late": 20, "flood": 20}


def test_a_costly_top_line_gets_its_part_and_no_more() -> None:
    waiting = turns(bulk=4)
    for _ in range(1000):
        waiting.add(("bulk", "a"), 10, "bulk")
        waiting.add(("now", "a"), 10, "now")
    assert 19 <= Counter(take(waiting, 100))["bulk"] <= 21


def test_clients_share_inside_of_their_adapter() -> None:
    waiting = turns()
    for i in range(1000):
        waiting.add(("x", "a", i % 50), 10, "many clients of a")
        waiting.add(("x", "b", 0), 10, "one client of b")
    assert 49 <= Counter(take(waiting, 100))["one client of b"] <= 51


def test_only_who_has_had_less_goes_ahead_of_what_is_running() -> None:
    waiting = turns()
    for _ in range(10):
        waiting.add(("x", "a", "client"), 100, "a")
    take(waiting, 10)
    for _ in range(3):
        waiting.add(("x", "b", "client"), 400, "b")
    ahead = 0
    while waiting and waiting.ahead_of(("x", "a", "client")):
        waiting.pop()
        ahead += 1
    assert ahead == 3  # at 0, 400 and 800 of the 1,000 that a has taken
    waiting.add(("x", "b", "client"), 1, "b")
    assert not waiting.ahead_of(("x", "a", "client"))
    waiting.add(("x", "a", "another client"), 1, "a")
    take(waiting, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.integers(1, 50), st.booleans()),
        max_size=60,
    )
)
def test_everything_comes_out_once_and_in_the_order_of_its_line(
    steps: list[tuple[str, str, int, bool]],
) -> None:
    waiting: Turns[int] = Turns({"a": 3.0})
    put: dict[LineKey, list[int]] = {}
    got: dict[LineKey, list[int]] = {}

    def pop() -> None:
        path, _, thing = waiting.peek()
        waiting.pop()
        got.setdefault(path, []).append(thing)

    for number, (top, low, tokens, popping) in enumerate(steps):
        waiting.add((top, low), tokens, number)
        put.setdefault((top, low), []).append(number)
        if popping:
            waiting.begin()
            pop()
    while waiting:
        pop()
    assert got == put
