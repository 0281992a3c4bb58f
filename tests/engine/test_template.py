"""Special tokens stand where the tokenizer itself puts them, learned from two probes."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from app.engine.template import Template, learn_template

WORDS = ["a", "b", "[CLS]", "[SEP]", "c"]
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")


def tokenizer(single: str, pair: str) -> Tokenizer:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = Whitespace()
    specials = [("[CLS]", CLS), ("[SEP]", SEP)]
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    return backend


BERT = tokenizer("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA = tokenizer("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]")


def test_a_text_stands_between_its_special_tokens() -> None:
    template = learn_template(BERT, 1)
    assert template.specials == 2
    assert template.ids([[0, 4]]) == [CLS, 0, 4, SEP]
    assert template.types([2]) == [0, 0, 0, 0]


def test_a_pairs_second_text_has_its_own_type() -> None:
    template = learn_template(BERT, 2)
    assert template.specials == 3
    assert template.ids([[0], [4, 4]]) == [CLS, 0, SEP, 4, 4, SEP]
    assert template.types([1, 2]) == [0, 0, 0, 1, 1, 1]


def test_two_special_tokens_may_stand_between_a_pair() -> None:
    template = learn_template(ROBERTA, 2)
    assert template.around == ((CLS,), (SEP, SEP), (SEP,))
    assert template.types([1, 1]) == [0] * 6


def test_an_empty_text_has_its_special_tokens_alone() -> None:
    assert Template(((CLS,), (SEP,)), ((0,), (0,)), (0,)).ids([[]]) == [CLS, SEP]


def test_a_tokenizer_that_changes_the_order_has_no_template() -> None:
    swapped = tokenizer("[CLS] $A [SEP]", "[CLS] $B [SEP] $A [SEP]")
    with pytest.raises(ValueError, match="around its texts"):
        learn_template(swapped, 2)
