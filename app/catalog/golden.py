"""Certificates: inputs with the answers that an adapter has to give, checked before it is served.

`golden.jsonl` holds one JSON object a line: {"input": text or [text, pair], "embedding": [...] or
"logits": [...], "tolerance"?}. An embedding is what /embed gives where the request says nothing
more, logits what /classify gives with raw_scores: [[...]] per token where the head labels tokens.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from app.adapters.receiving.upload import MAX_GOLDEN_BYTES, refuse_another_kind, whole_text
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.sentence import Sentence
from app.adapters.values import Adapter
from app.engine.engine import Engine
from app.engine.tokenizer import Cut, InputRefused, TextTokenizer, tokenize
from app.model.delta import Layers
from app.model.sequence import Sequence, Want, Wanted, wanted_embedding
from app.model.version import Version

TOLERANCE = 1e-4  # of the largest number of a line's answer, or absolute where that is under 1
# A base in half precision cannot hold an answer of float32 closer than this: the shipped adapters'
# are up to 0.4 % and 4.9 % off (AVX2). A wrong scale or adapter is farther.
HALF_PRECISION = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.int8: 2e-1}
MOST_LINES = 64
MOST_TOKENS = 8_192  # of all lines together: some two seconds of one core, at every start
MOST_CHARACTERS = 100_000  # before they are tokenized
ENOUGH_MISSES = 3  # a certificate that does not hold need not be run to its end


ANSWERS: tuple[Wanted, ...] = get_args(Wanted)


class CertificateFailed(AdapterRejected):
    """The adapter does not give the answers that its certificate holds."""


@dataclass(frozen=True, eq=False)
class Golden:
    """One line. kind: which answer is wanted. answer [H], [L] or [n, L], fp32."""

    input: str | tuple[str, str]
    kind: Wanted
    answer: Tensor
    tolerance: float


def read_golden(path: Path) -> list[Golden]:
    """Every line of a certificate. Raises AdapterRejected, naming the lines that are wrong."""
    if path.stat().st_size > MAX_GOLDEN_BYTES:
        raise AdapterRejected(f"{path.name} is over {MAX_GOLDEN_BYTES:,} bytes")
    read = path.read_bytes()
    refuse_another_kind(read, path.name)
    try:
        text = read.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AdapterRejected(f"{path.name} is not UTF-8") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not 0 < len(lines) <= MOST_LINES:
        raise AdapterRejected(f"{path.name} has {len(lines)} lines; 1 to {MOST_LINES} are served")
    goldens, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            goldens.append(_read_line(whole_text(json.loads(line))))
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            problems.append(Problem(f"cannot be read: {error}", f"{path.name}:{number}"))
    if problems:
        raise AdapterRejected(f"{path.name} is no certificate", problems)
    return goldens


def _read_line(line: Any) -> Golden:
    if not isinstance(line, dict):
        raise TypeError("is no JSON object")
    kinds = [kind for kind in ANSWERS if kind in line]
    if len(kinds) != 1:
        raise ValueError("has not one of embedding and logits")
    value: Any = line.get("input")
    texts: list[Any] = value if isinstance(value, list) else [value]
    if len(texts) not in (1, 2) or not all(isinstance(text, str) and text for text in texts):
        raise TypeError("its input is neither a text nor a pair of texts")
    tolerance = line.get("tolerance", TOLERANCE)
    if (
        isinstance(tolerance, bool)
        or not isinstance(tolerance, int | float)
        or not 0 < tolerance < 1
    ):
        raise ValueError("its tolerance is no number between 0 and 1")
    answer = torch.tensor(line[kinds[0]], dtype=torch.float32)
    if answer.dim() not in (1, 2) or not answer.numel() or not torch.isfinite(answer).all():
        raise ValueError("its answer is no list of finite numbers")
    texts_input: str | tuple[str, str] = (
        str(texts[0]) if len(texts) == 1 else (str(texts[0]), str(texts[1]))
    )
    return Golden(texts_input, kinds[0], answer, float(tolerance))


async def verify(
    engine: Engine,
    tokenizer: TextTokenizer,
    adapter: Adapter,
    layers: Layers,
    goldens: list[Golden],
) -> float:
    """The largest difference of any answer, as a share of its tolerance.

    Raises CertificateFailed.
    """
    sentence = engine.encoder.sentence(adapter)
    try:
        version = Version("", adapter, layers)
        sequences = await asyncio.to_thread(_sequences, tokenizer, version, sentence, goldens)
    except InputRefused as error:
        raise CertificateFailed(
            f"the certificate's line {error.index + 1} {error.reason}"
        ) from None
    worst, problems = 0.0, []
    for number, (golden, sequence) in enumerate(zip(goldens, sequences, strict=True), 1):
        answer = (await engine.call(partial(engine.encoder.run, [sequence])))[0]
        if answer.shape != golden.answer.shape:
            shapes = f"{list(answer.shape)}, and the certificate {list(golden.answer.shape)}"
            problems.append(Problem(f"the adapter gives {shapes}", f"line {number}"))
            continue
        share = max(golden.tolerance, HALF_PRECISION.get(engine.encoder.dtype, 0.0))
        limit = share * max(1.0, float(golden.answer.abs().max()))
        off = float((answer - golden.answer).abs().max())
        worst = max(worst, off / limit)
        if not off <= limit:
            problems.append(Problem(f"is off by {off:.2e}, over {limit:.2e}", f"line {number}"))
        if len(problems) == ENOUGH_MISSES:
            break
    if problems:
        raise CertificateFailed(
            f"{_at_least(len(problems))} of {len(goldens)} answers of its certificate do not hold "
            "on this base",
            problems,
        )
    return worst


def _sequences(
    tokenizer: TextTokenizer,
    version: Version,
    sentence: Sentence,
    goldens: list[Golden],
) -> list[Sequence]:
    cut = Cut(sentence.max_length or 512)
    prompt = (sentence.prompts or {}).get(sentence.default_prompt or "", "")
    inputs = [
        golden.input if isinstance(golden.input, tuple) else (golden.input,) for golden in goldens
    ]
    characters = sum(len(text) for texts in inputs for text in (prompt, *texts))
    if characters > MOST_CHARACTERS:
        raise CertificateFailed(
            f"its certificate has over {MOST_CHARACTERS:,} characters, prompts too"
        )
    sequences = []
    for i, golden in enumerate(goldens):
        logits = golden.kind == "logits"
        if logits and version.adapter.head is None:
            raise CertificateFailed("its certificate holds logits, and the adapter has no head")
        try:
            tokens = tokenize(tokenizer, [golden.input], cut, "" if logits else prompt)[0]
        except InputRefused as error:
            raise InputRefused(i, error.reason) from None
        want = Want("logits") if logits else wanted_embedding(sentence)
        sequences.append(Sequence(tokens.ids, tokens.types, want, version))
    if sum(len(sequence.ids) for sequence in sequences) > MOST_TOKENS:
        raise CertificateFailed(f"its certificate has over {MOST_TOKENS:,} tokens in all")
    return sequences


def _at_least(misses: int) -> str:
    return f"at least {misses}" if misses == ENOUGH_MISSES else str(misses)
