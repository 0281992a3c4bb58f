"""Our cutting against transformers' own, for texts and pairs, left and right."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from app.engine.tokenizer import Cut, InputRefused, load_tokenizer, tokenize
from app.model.embedded import embedded_base

TEXT = st.text(min_size=1, max_size=80)
MINILM = embedded_base()
OURS = load_tokenizer(MINILM, 30522, 2)
THEIRS = {
    side: AutoTokenizer.from_pretrained(MINILM, truncation_side=side) for side in ("left", "right")
}


@settings(max_examples=300, deadline=None)
@given(
    first=TEXT,
    second=st.none() | TEXT,
    length=st.integers(4, 40),
    side=st.sampled_from(["left", "right"]),
)
def test_cut_as_transformers_cuts(first: str, second: str | None, length: int, side: str) -> None:
    parts = [first] if second is None else [first, second]
    wanted = THEIRS[side](*parts, truncation=True, max_length=length)
    given_ = first if second is None else (first, second)
    got = tokenize(OURS, [given_], Cut(length, True, side))[0]  # type: ignore[arg-type]
    assert (got.ids, got.types) == (wanted["input_ids"], wanted["token_type_ids"])


def test_token_ids_are_taken_as_they_are_and_checked() -> None:
    assert tokenize(OURS, [[101, 7, 102]], Cut(10))[0].ids == [101, 7, 102]
    assert tokenize(OURS, [[1, 2, 3, 4]], Cut(2))[0].ids == [1, 2]
    assert tokenize(OURS, [[1, 2, 3, 4]], Cut(2, True, "left"))[0].ids == [3, 4]
    with pytest.raises(InputRefused, match="outside"):
        tokenize(OURS, [[30522]], Cut(10))


def test_truncate_false_refuses_and_names_the_input() -> None:
    with pytest.raises(InputRefused) as refused:
        tokenize(OURS, ["short", "much too long " * 20], Cut(16, False))
    assert refused.value.index == 1
    assert "62 tokens" in refused.value.reason


def test_a_prompt_goes_before_the_first_text_of_a_pair(tmp_path: Path) -> None:
    got = tokenize(OURS, [("b", "c"), "d"], Cut(20), "a ")
    assert [g.ids for g in got] == [
        THEIRS["right"]("a b", "c")["input_ids"],
        THEIRS["right"]("a d")["input_ids"],
    ]
