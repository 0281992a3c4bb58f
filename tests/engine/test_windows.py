"""A long text's ids are those of tokenising all of it and cutting afterwards, at a bounded cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import XLMRobertaTokenizer

from app.engine import windows
from app.engine.template import learn_template
from app.engine.tokenizer import Cut, InputRefused, TextTokenizer, load_tokenizer, tokenize
from app.model.embedded import embedded_base
from tests.tiny import tiny_tokenizer

Side = Literal["left", "right"]
TEXTS = [
    "the quick brown fox, jumps over 12345678 lazy dogs!",
    "aaaa bbbb  \n\n naïve 好的 привет",
    "aaaaaa",
]


def _trained(model: models.Model, trainer: trainers.Trainer, pre: object) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return tokenizer


def byte_level() -> Tokenizer:
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    made = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.decoder = decoders.ByteLevel()
    return made


def threes() -> Tokenizer:
    """Byte-level BPE whose digits go by threes from the left, as in cl100k."""
    special = ["<s>", "</s>"]
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return _trained(models.BPE(), trainer, pre)


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>"
    )
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made = _trained(models.Unigram(), trainer, split)
    made.normalizer = normalizers.NFKC()
    return made


def bare(tokenizer: Tokenizer) -> TextTokenizer:
    templates = learn_template(tokenizer, 1), learn_template(tokenizer, 2)
    return TextTokenizer(tokenizer, None, tokenizer.get_vocab_size(), True, *templates)


def sentence_piece() -> Tokenizer:
    """As transformers builds XLM-R's, Jina's and GTE's from their pieces, whose normaliser is a
    table.
    """
    pieces = json.loads(unigram().to_str())["model"]["vocab"]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(p, score) for p, score in pieces if not p.startswith("<")]
    backend = XLMRobertaTokenizer(vocab=vocabulary).backend_tokenizer
    made = Tokenizer.from_str(backend.to_str())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return made


KINDS = {
    "WordPiece": load_tokenizer(embedded_base(), 30522, 2),
    "letters": bare(tiny_tokenizer().backend_tokenizer),
    "byte-level BPE": bare(byte_level()),
    "digits by threes": bare(threes()),
    "Unigram": bare(unigram()),
    "XLM-R": bare(sentence_piece()),
}


OWN = {kind: Tokenizer.from_str(made.backend.to_str()) for kind, made in KINDS.items()}


def cut_afterwards(kind: str, parts: list[str], length: int, side: Side) -> tuple:
    """The tokenizer's own truncation of the whole text."""
    own = OWN[kind]
    own.enable_truncation(length, direction=side, strategy="longest_first")
    done = own.encode(*parts)
    return done.ids, done.type_ids, done.offsets


RUNS = st.lists(
    st.tuples(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(
                [
                    "a",
                    "ab ",
                    " ",
                    "\n",
                    "1",
                    "12 ",
                    "!",
                    "好",
                    "é",
                    "e\u0301",
                    "\u0301",
                    "\u200b",
                    "😀",
                    "don't ",
                    "naïve ",
                    "the quick brown fox ",
                ]
            ),
        ),
        st.sampled_from([1, 2, 3, 97, 98, 200, 700, 1999]),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(runs=RUNS, length=st.integers(8, 300), side=st.sampled_from(["left", "right"]))
@example(runs=[("a", 1999)], length=20, side="right")
@example(runs=[("1", 1999), (" x", 1)], length=20, side="left")
@example(runs=[("ab ", 1999), ("a", 1999)], length=64, side="left")
def test_what_is_cut_off_changes_no_id(
    kind: str, runs: list[tuple[str, int]], length: int, side: Side
) -> None:
    text = "".join(piece * count for piece, count in runs)[:20_000]
    if not text:
        return
    got = tokenize(KINDS[kind], [text], Cut(length, True, side))[0]
    ids, types, offsets = cut_afterwards(kind, [text], length, side)
    assert got.ids == ids
    if KINDS[kind].types:
        assert got.types == types
    places = [place for place in got.places or [] if place]
    if kind in (
        "WordPiece",
        "letters",
        "Unigram",
        "XLM-R",
    ):  # a byte-level post-processor moves its own
        assert places == [o for o, i in zip(offsets, ids, strict=True) if i not in specials(kind)]


def specials(kind: str) -> set[int]:
    return {token for part in KINDS[kind].single.around for token in part}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(first=RUNS, second=RUNS, length=st.integers(24, 60), side=st.sampled_from(["left", "right"]))
@example(first=[("ab ", 700)], second=[("ab ", 1999)], length=40, side="right")
@example(first=[("ab ", 1999)], second=[("ab ", 700)], length=41, side="right")
def test_of_a_pair_the_longer_text_is_cut_first(
    kind: str, first: list[tuple[str, int]], second: list[tuple[str, int]], length: int, side: Side
) -> None:
    a, b = ("".join(piece * count for piece, count in runs)[:1_500] for runs in (first, second))
    if not a:
        return
    got = tokenize(KINDS[kind], [(a, b)], Cut(length, True, side))[0]
    ids, _, _ = cut_afterwards(kind, [a, b], length, side)
    assert got.ids == ids


def counted(kind: str, run: Callable[[TextTokenizer], object]) -> int:
    """How many characters the tokenizer is given meanwhile."""
    seen = 0

    class Counting:
        def __init__(self, backend: Tokenizer) -> None:
            self._backend = backend

        def __getattr__(self, name: str) -> object:
            return getattr(self._backend, name)

        def encode_batch(self, texts: list[str], **more: bool) -> object:
            nonlocal seen
            seen += sum(map(len, texts))
            return self._backend.encode_batch(texts, **more)

    plain = KINDS[kind]
    run(replace(plain, backend=Counting(plain.backend)))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("piece", ["a ", "a", " ", "\n", "1", "!", "好", "\u0301", "😀"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_text_is_read_up_to_a_bound(kind: str, side: Side, piece: str) -> None:
    flood = piece * (2_000_000 // len(piece))
    cut = Cut(64, True, side)
    tokens: list[int] = []
    read = counted(kind, lambda t: tokens.extend(tokenize(t, [flood], cut)[0].ids))
    assert len(tokens) <= 64
    assert read <= 4 * windows.LOOK


def test_a_query_is_tokenised_once_however_many_texts_it_is_paired_with() -> None:
    query = "where is my card " * 10
    pairs = [(query, f"text {i}") for i in range(200)]
    read = counted("WordPiece", lambda t: tokenize(t, pairs, Cut(256)))
    assert read <= len(query) + sum(len(text) for _, text in pairs)


def test_a_long_prompt_is_tokenised_once_for_all_texts_that_it_crowds_out() -> None:
    texts = [f"text {i}" for i in range(512)]
    read = counted("WordPiece", lambda t: tokenize(t, texts, Cut(256), "word " * 2000))
    assert read <= 4 * windows.LOOK


def test_who_no_longer_waits_stops_the_work() -> None:
    calls = 0

    class Gone(Exception):
        pass

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Gone

    with pytest.raises(Gone):
        tokenize(KINDS["WordPiece"], [f"text {i}" for i in range(1000)], Cut(64), check=check)


def test_a_long_text_that_may_not_be_cut_is_refused_without_reading_it_all() -> None:
    with pytest.raises(InputRefused, match="many more tokens, over the 64"):
        tokenize(KINDS["WordPiece"], ["a " * 100_000], Cut(64, False))


def test_a_word_far_behind_a_blank_is_one_too_many() -> None:
    text = "a " * 10 + " " * 20_000
    fits = tokenize(KINDS["WordPiece"], [text], Cut(12, False))[0]
    assert len(fits.ids) == 12
    with pytest.raises(InputRefused, match="over the 12"):
        tokenize(KINDS["WordPiece"], [text + "b"], Cut(12, False))


def test_which_text_of_a_pair_is_longer_is_found_at_a_bounded_cost() -> None:
    pair = ("a " * 1_000_000, "b " * 1_000_000)
    read = counted("WordPiece", lambda t: tokenize(t, [pair], Cut(64)))
    assert read <= 4 * windows.LOOK


def test_a_tokenizer_that_turns_a_pair_around_has_no_template() -> None:
    tokenizer = byte_level()
    special = [("<s>", 0), ("</s>", 1)]
    for odd in ("<s> $B </s> $A </s>", "<s> $A $B </s>", "$A $A </s> $B"):
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", pair=odd, special_tokens=special
        )
        assert learn_template(tokenizer, 1).specials == 2
        with pytest.raises(ValueError, match="do not stand around"):
            learn_template(tokenizer, 2)
