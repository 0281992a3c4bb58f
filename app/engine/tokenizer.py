"""Text -> token ids, cut to length, off the event loop.

The fast tokenizer's own truncation and padding are state, so they stay off: one object serves every
thread, and each call has its own length. Knows no models and no HTTP.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from app.engine.template import Template, learn_template
from app.engine.windows import Direction, Encoded, encode, length
from app.model import kept_files
from app.model.base_files import BaseRefused

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
)
TOLD_IN = (".json", ".txt", ".model", ".jinja")
Input = str | tuple[str, str] | list[int]
Cause = Literal["input", "empty", "too_long"]


class InputRefused(Exception):
    """An input that cannot be run. index: which of the request's inputs. cause: what it is, for
    dialects that tell these apart.
    """

    def __init__(self, index: int, reason: str, cause: Cause = "input") -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason
        self.cause = cause


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
    """backend: the fast tokenizer without state of its own. folder: its files.

    vocabulary: ids below it are the model's. types: whether the model gets token_type_ids.
    single, pair: where special tokens go.
    """

    backend: Tokenizer
    folder: Path
    vocabulary: int
    types: bool
    single: Template
    pair: Template

    @cached_property
    def fast(self) -> Any:
        """transformers' object around it. Blocks, at the first look: a second of imports."""
        return _by_transformers(self.folder)


@dataclass(frozen=True, eq=False)
class Part:
    """One text of an input, with its prompt, and as many of its tokens as the cut needs."""

    text: str
    encoded: Encoded


@dataclass(frozen=True)
class Cut:
    """How long an input may be, in tokens with the special ones, and from which end it is cut."""

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
    text, has_types = _read_kept(folder) or _keep(folder)
    backend = Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    types = type_vocabulary > 1 and has_types
    try:
        single, pair = learn_template(backend, 1), learn_template(backend, 2)
    except ValueError as error:
        raise BaseRefused(f"{folder}'s tokenizer cannot be served: {error}") from None
    return TextTokenizer(backend, folder, vocabulary, types, single, pair)


def _by_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=True)


def _read_kept(folder: Path) -> tuple[str, bool] | None:
    """What an earlier start has kept of it: as _keep. None: nothing."""
    body = kept_files.read(_name_of(folder))
    with contextlib.suppress(ValueError, LookupError, TypeError):
        told = json.loads(body or b"")
        return str(told["tokenizer"]), bool(told["has_types"])
    return None


def _keep(folder: Path) -> tuple[str, bool]:
    """The fast tokenizer as its library reads it, and whether transformers gives token types with
    it: for this start and the next."""
    fast = _by_transformers(folder)
    text, has_types = fast.backend_tokenizer.to_str(), "token_type_ids" in fast.model_input_names
    kept = json.dumps({"tokenizer": text, "has_types": has_types}).encode()
    kept_files.write(_name_of(folder), kept)
    return text, has_types


def _name_of(folder: Path) -> str:
    """By all that transformers may read of it, and its version."""
    files = sorted(path for path in folder.iterdir() if path.suffix in TOLD_IN and path.is_file())
    bodies = (path.name.encode() + path.read_bytes() for path in files)
    by = f"{version('transformers')} {version('tokenizers')}".encode()
    return f"tokenizer-{kept_files.short_hash(by, *bodies)}.json"


def tokenize(
    tokenizer: TextTokenizer,
    inputs: Sequence[Input],
    cut: Cut,
    prompt: str = "",
    check: Callable[[], None] = lambda: None,
) -> list[Tokens]:
    """Each text, pair or list of ids as tokens; ids are taken as they are, nothing is added.

    prompt goes before each text (a pair's first). check is called between parts of the work; an
    exception of its ends the work. Blocks: call it in a thread.
    Raises InputRefused for an empty input, an id outside the vocabulary, or a long input with
    truncate=False.
    """
    texts = [_texts(i, value, prompt) for i, value in enumerate(inputs)]
    room = max(0, cut.max_length - tokenizer.single.specials)
    flat = [text for parts in texts for text in parts]
    encoded = iter(encode(tokenizer.backend, flat, room, cut.direction, check))
    parts_of = [[Part(text, next(encoded)) for text in parts] for parts in texts]
    return [
        _from_ids(i, value, cut, tokenizer.vocabulary)
        if isinstance(value, list)
        else _finish(tokenizer, i, parts, cut)
        for i, (value, parts) in enumerate(zip(inputs, parts_of, strict=True))
    ]


def _texts(i: int, value: Input, prompt: str) -> list[str]:
    """A text, or a pair's two; none for ids. The first with the prompt before it."""
    if isinstance(value, list):
        return []
    first, *rest = value if isinstance(value, tuple) else (value,)
    if not first:
        raise InputRefused(i, "is empty", "empty")
    return [prompt + first, *rest]


def _finish(tokenizer: TextTokenizer, i: int, parts: list[Part], cut: Cut) -> Tokens:
    """Cut, then add the special tokens. A pair is cut as transformers' longest_first does."""
    pair = len(parts) > 1
    template = tokenizer.pair if pair else tokenizer.single
    room = max(0, cut.max_length - template.specials)  # special tokens stay in any case
    lengths = [len(part.encoded.ids) for part in parts]
    if sum(lengths) > room:
        if not cut.truncate:
            over = sum(lengths) + template.specials
            count = f"has {over}" if all(p.encoded.whole for p in parts) else "has many more"
            raise InputRefused(
                i,
                f"{count} tokens, over the {cut.max_length} that fit: send truncate=true, or less",
                "too_long",
            )
        lengths = _longest_first(tokenizer.backend, parts, room) if pair else [room]
    stay = [
        slice(n) if cut.direction == "right" else slice(max(0, len(p.encoded.ids) - n), None)
        for p, n in zip(parts, lengths, strict=True)
    ]
    ids = template.ids([p.encoded.ids[s] for p, s in zip(parts, stay, strict=True)])
    types = template.types(lengths) if tokenizer.types else [0] * len(ids)
    if pair:
        return Tokens(ids, types)
    before, behind = map(len, template.around)
    return Tokens(
        ids, types, [*[None] * before, *parts[0].encoded.places[stay[0]], *[None] * behind]
    )


def _longest_first(backend: Tokenizer, parts: list[Part], room: int) -> list[int]:
    """How many tokens of each stay: the longer one loses first, then both to half."""
    first, second = (min(len(part.encoded.ids), room + 1) for part in parts)
    short = min(first, second, room // 2)
    if short == room - short:
        return [short, short]
    if first == second == room + 1:  # which is longer is not known from windows
        first, second = (
            len(p.encoded.ids) if p.encoded.whole else length(backend, p.text) for p in parts
        )
    return [room - short, short] if first > second else [short, room - short]


def _from_ids(i: int, ids: list[int], cut: Cut, vocabulary: int) -> Tokens:
    if not ids:
        raise InputRefused(i, "is empty", "empty")
    if not all(0 <= t < vocabulary for t in ids):
        raise InputRefused(i, f"has a token id outside of 0 to {vocabulary - 1}")
    if len(ids) > cut.max_length:
        if not cut.truncate:
            reason = f"has {len(ids)} tokens, over the {cut.max_length} that fit"
            raise InputRefused(i, reason, "too_long")
        ids = ids[: cut.max_length] if cut.direction == "right" else ids[-cut.max_length :]
    return Tokens(ids, [0] * len(ids))
