"""How a weighted sum of adapters is spelled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.sums import CannotCompose
from app.catalog.terms import LARGEST, Spelled, read_terms

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}(@[0-9a-f]{12})?", fullmatch=True)
WEIGHTS = st.floats(-LARGEST, LARGEST).filter(lambda w: w == 0 or abs(w) > 1e-99)


@given(
    st.lists(st.tuples(NAMES, WEIGHTS), min_size=1, max_size=8), st.sampled_from(["+", " ", " + "])
)
def test_what_is_spelled_with_weights_is_read_back(
    terms: list[tuple[str, float]], between: str
) -> None:
    spelled = between.join(f"{name}:{weight!r}" for name, weight in terms)
    assert read_terms(spelled) == [Spelled(*term) for term in terms]


@pytest.mark.parametrize(
    "name", ["a", "a@0123456789ab", "base", "org/model:latest", "My model", ""]
)
def test_a_name_alone_and_another_servers_model_are_no_sum(name: str) -> None:
    assert read_terms(name) is None


@given(st.text(st.sampled_from("ab01:+ .-@e"), max_size=40))
def test_any_text_is_terms_or_none_or_refused(spelled: str) -> None:
    try:
        terms = read_terms(spelled)
    except CannotCompose:
        return
    assert terms is None or all(abs(term.weight) <= LARGEST for term in terms)
