"""Text -> token ids, cut to length, off the event loop.

The fast tokenizer is used without its own truncation and padding, which are state: so one object
serves every thread, and each call can have its own length. Knows no models and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from app.model.base_files import BaseRefused

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
)
Input = str | tuple[str, str] | list[int]
Direction = Literal["left", "right"]


class InputRefused(Exception):
    """An input that cannot be run. index: which of the request's inputs."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class Tokens:
    """One sequence. ids and types (token_type_ids) have one length; special tokens included.

    places: each token's first and last character in a single text; None for a special token, and
    altogether for pairs and for ids that came as ids.
    """

    ids: list[int]
    types: list[int]
    places: list[tuple[int, int] | None] | None = None


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """backend: the fast tokenizer without state of its own. fast: transformers' object around it.

    vocabulary: ids below it are the model's. types: whether the model is told a pair's halves apart.
    """

    backend: Tokenizer
    fast: Any
    vocabulary: int
    types: bool


@dataclass(frozen=True)
class Cut:
    """How inputs that are too long are treated; max_length counts special tokens."""

    max_length: int
    truncate: bool = True
    direction: Direction = "right"


def load_tokenizer(folder: Path, vocabulary: int, type_vocabulary: int) -> TextTokenizer:
    """The folder's fast tokenizer, its built-in truncation and padding switched off.

    type_vocabulary: how many token types the model knows. Token types are given only where
    transformers' tokenizer gives them, too. Raises BaseRefused where there is no tokenizer:
    transformers would make up an empty one.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise BaseRefused(f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    fast = AutoTokenizer.from_pretrained(folder, use_fast=True)
    backend = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    types = type_vocabulary > 1 and "token_type_ids" in fast.model_input_names
    return TextTokenizer(backend, fast, vocabulary, types)


def tokenize(
    tokenizer: TextTokenizer, inputs: Sequence[Input], cut: Cut, prompt: str = ""
) -> list[Tokens]:
    """Each text, pair or list of ids as tokens; ids are taken as they are, nothing is added.

    prompt goes before each text (a pair's first). Blocks: call it in a thread. Raises InputRefused
    for an empty input, an id outside the vocabulary, or a long input with truncate=False.
    """
    texts = [i for i, value in enumerate(inputs) if not isinstance(value, list)]
    firsts, seconds = _split(inputs, texts, prompt)
    encode = tokenizer.backend.encode_batch
    encoded = iter(encode(firsts, add_special_tokens=False))
    pairs = encode(list(seconds.values()), add_special_tokens=False)
    paired = dict(zip(seconds, pairs, strict=True))
    return [
        _from_ids(i, value, cut, tokenizer.vocabulary)
        if isinstance(value, list)
        else _finish(tokenizer, i, next(encoded), paired.get(i), cut)
        for i, value in enumerate(inputs)
    ]


def _split(
    inputs: Sequence[Input], texts: list[int], prompt: str
) -> tuple[list[str], dict[int, str]]:
    firsts: list[str] = []
    seconds: dict[int, str] = {}
    for i in texts:
        value = inputs[i]
        first = value if isinstance(value, str) else value[0]
        if not first:
            raise InputRefused(i, "is empty")
        firsts.append(prompt + str(first))
        if isinstance(value, tuple):
            seconds[i] = value[1]
    return firsts, seconds


def _finish(
    tokenizer: TextTokenizer, i: int, first: Encoding, second: Encoding | None, cut: Cut
) -> Tokens:
    """Cut, then add the special tokens (truncation as transformers' longest_first)."""
    room = cut.max_length - tokenizer.backend.num_special_tokens_to_add(second is not None)
    total = len(first) + (len(second) if second else 0)
    if total > room:
        if not cut.truncate:
            over = total - room + cut.max_length
            raise InputRefused(
                i,
                f"has {over} tokens, over the {cut.max_length} that fit: send truncate=true, or less",
            )
        keep_first, keep_second = _longest_first(len(first), len(second) if second else 0, room)
        first.truncate(keep_first, direction=cut.direction)
        if second is not None:
            second.truncate(keep_second, direction=cut.direction)
    done = tokenizer.backend.post_process(first, second, add_special_tokens=True)
    types = done.type_ids if tokenizer.types else [0] * len(done.ids)
    return Tokens(done.ids, types, None if second is not None else _places(first, done))


def _places(first: Encoding, done: Encoding) -> list[tuple[int, int] | None]:
    """The text's own places: a byte-level post-processor trims spaces off a second time in `done`."""
    own = iter(first.offsets)
    return [None if special else next(own) for special in done.special_tokens_mask]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each stay: the longer one loses first, then both to half."""
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


def _from_ids(i: int, ids: list[int], cut: Cut, vocabulary: int) -> Tokens:
    if not ids:
        raise InputRefused(i, "is empty")
    if not all(0 <= t < vocabulary for t in ids):
        raise InputRefused(i, f"has a token id outside of 0 to {vocabulary - 1}")
    if len(ids) > cut.max_length:
        if not cut.truncate:
            raise InputRefused(i, f"has {len(ids)} tokens, over the {cut.max_length} that fit")
        ids = ids[: cut.max_length] if cut.direction == "right" else ids[-cut.max_length :]
    return Tokens(ids, [0] * len(ids))
