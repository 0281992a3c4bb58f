"""One version's files -> a resident version: read, account, fold, measure, certify.

Knows files, tensors and the base; knows no names of adapters.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from app.adapters.changes import changed_tokens, changes_a_weight
from app.adapters.config.made_for import made_for_another
from app.adapters.config.read_recipe import read_recipe
from app.adapters.files import CONFIG, GOLDEN, MODEL_CONFIG, SENTENCE_FILES, WEIGHTS
from app.adapters.methods.table import method_of
from app.adapters.read import read_adapter
from app.adapters.receiving.upload import read_any_json, read_json, read_tensors
from app.adapters.recipe import Options, Recipe
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.report import Effect, Report, TensorCounts, report_from_json
from app.adapters.sentence import Sentence, SentenceRefused, read_sentence
from app.adapters.values import Adapter, laid_out
from app.catalog.golden import Golden, read_golden, verify
from app.catalog.pointer import digest_of
from app.catalog.store import Json
from app.catalog.stored_version import StoredVersion
from app.engine.engine import Engine
from app.engine.tokenizer import Cut, TextTokenizer, tokenize
from app.model.delta import Layers, unmerged_layers
from app.model.encoder import Encoder
from app.model.sequence import Sequence, Want
from app.model.states import Delta, States, distance
from app.model.version import Version, embedding_space

REPORT_FORMAT = 3  # of what is stored about a version; another one is measured again
COMPOSED = "composed"  # the member of a file's metadata
LONGEST_COMPOSED = 2000  # characters
TINY = 1e-4  # under this a delta may be the arithmetic's own noise: the weights are looked at
OnLoad = Callable[[float, Exception | None], None]
PROBE = "The quick brown fox jumps over the lazy dog; nothing here was easy, but it was worth it."


def _unheard(_: float, __: Exception | None) -> None:
    """Nobody counts loads."""


@dataclass(frozen=True, eq=False)
class Loader:
    """What every version is loaded with. probe_ids: the text that measures what an adapter does;
    probe_states: the base's own on it. on_load: told the seconds of each load, and what it raised.
    """

    engine: Engine
    tokenizer: TextTokenizer
    probe_ids: list[int]
    probe_states: States
    on_load: OnLoad


def make_loader(engine: Engine, tokenizer: TextTokenizer, on_load: OnLoad = _unheard) -> Loader:
    """Runs the base once. Blocks."""
    ids = tokenize(tokenizer, [PROBE], Cut(engine.encoder.max_length))[0].ids
    return Loader(engine, tokenizer, ids, engine.encoder.states(ids), on_load)


@contextmanager
def _told(on_load: OnLoad) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        on_load(time.perf_counter() - started, error)
        raise
    on_load(time.perf_counter() - started, None)


async def load_version(
    loader: Loader,
    folder: Path,
    digest: str,
    options: Json,
    *,
    allow_noop: bool,
    report: Report | None = None,
    certify: bool = True,
) -> StoredVersion:
    """folder: a version's files. options: what `options_to_json` gave of the query's.

    report: of an earlier load of the same bytes on this base, which need not be measured again.
    certify=False: its certificate has held in this process.
    Raises AdapterRejected; CertificateFailed, which is one, where its golden.jsonl does not hold.
    """
    with _told(loader.on_load):
        engine, encoder = loader.engine, loader.engine.encoder
        read = await asyncio.to_thread(_read, folder, options, encoder)
        adapter = await asyncio.to_thread(
            laid_out, read.adapter, encoder.device, encoder.adapters_dtype
        )
        layers = await asyncio.to_thread(unmerged_layers, adapter, list(encoder.wrappers))
        if report is None:
            delta = await engine.call(lambda: _delta(loader, changed_tokens(read.adapter), layers))
            _refuse_no_effect(delta, read.adapter, encoder, allow_noop)
            await _refuse_overflow(loader, adapter, layers)
            report = _report(digest, adapter, delta, read, encoder)
        if certify and read.goldens:
            await verify(engine, loader.tokenizer, adapter, layers, read.goldens)
        return StoredVersion(digest, adapter, layers, report=report)


def _delta(loader: Loader, more_ids: list[int], layers: Layers) -> Delta:
    """What the layers do to the probe text, and to tokens that they replace."""
    encoder = loader.engine.encoder
    ids = [*loader.probe_ids, *more_ids][: encoder.max_length]
    base = encoder.states(ids) if more_ids else loader.probe_states
    return distance(encoder.states(ids, layers), base)


def to_store(report: Report, encoder: Encoder) -> Json:
    """A report with what it holds for: this very base, and a server that reports the same."""
    fields = {"format": REPORT_FORMAT, "base": encoder.digest, "report": report.to_json()}
    return {**fields, "sha256": digest_of(fields)}


def from_store(stored: Json | None, encoder: Encoder) -> Report | None:
    """The stored report, where it still holds."""
    fields = {k: v for k, v in (stored or {}).items() if k != "sha256"}
    if stored is None or stored.get("sha256") != digest_of(fields):
        return None
    holds = (fields.get("format"), fields.get("base")) == (REPORT_FORMAT, encoder.digest)
    return report_from_json(fields["report"]) if holds else None


def options_to_json(options: Options) -> Json:
    """What the query says, without what it leaves out; part of the version's identity."""
    return {k: v for k, v in asdict(options).items() if v is not None}


@dataclass(frozen=True, eq=False)
class _Read:
    """A version's files, understood. tensors, file_bytes: of its weights."""

    adapter: Adapter
    tensors: int
    file_bytes: int
    goldens: list[Golden]
    warnings: list[str]


def _read(folder: Path, options: Json, encoder: Encoder) -> _Read:
    if (folder / CONFIG).exists():
        method_of(
            read_json(folder / CONFIG)
        )  # before its tensors, whose dtypes may be its own, too
    weights = read_tensors(folder / WEIGHTS)
    recipe = recipe_of(folder, weights.metadata, options)
    query = options_from_json(options)
    goldens = read_golden(folder / GOLDEN) if (folder / GOLDEN).exists() else []
    adapter = read_adapter(weights.tensors, recipe, encoder.base)
    if adapter.head is None and query.labels is not None:
        raise AdapterRejected("labels are given in the query, and the file holds no head for them")
    if adapter.head is not None and query.task == "embed":
        raise AdapterRejected("the query says task=embed, and the file holds a head")
    _refuse_embedding(adapter.sentence, encoder)
    warnings = [
        *made_for_another(recipe.made_for, encoder.files.id, encoder.files.folder),
        *adapter.assumed,
        *_composed(weights.metadata),
    ]
    return _Read(adapter, len(weights.tensors), weights.file_bytes, goldens, warnings)


def _composed(metadata: dict[str, str]) -> list[str]:
    """Of what the adapter was made, where it says so (composing.py)."""
    told = metadata.get(COMPOSED, "")[:LONGEST_COMPOSED]
    return [f"composed of {told}"] if told else []


def recipe_of(folder: Path, metadata: dict[str, str], options: Json) -> Recipe:
    """How a version's files and the query's options say that its tensors are read.

    Raises AdapterRejected.
    """
    config, model_config = (
        read_json(folder / f) if (folder / f).exists() else {} for f in (CONFIG, MODEL_CONFIG)
    )
    return read_recipe(
        config, model_config, metadata, options_from_json(options), _sentence(folder)
    )


def options_from_json(options: Json) -> Options:
    """Of what `options_to_json` has given. Raises TypeError."""
    labels = options.get("labels")
    return Options(**{**options, "labels": None if labels is None else tuple(labels)})


def _sentence(folder: Path) -> Sentence:
    """What the folder's sentence-transformers files say. Raises AdapterRejected."""
    files = [
        read_any_json(folder / name) if (folder / name).exists() else None
        for name in SENTENCE_FILES
    ]
    try:
        return read_sentence(*files)
    except SentenceRefused as error:
        raise AdapterRejected(f"as a sentence-transformers folder, {error}") from None


def _refuse_embedding(sentence: Sentence, encoder: Encoder) -> None:
    if sentence.pooling == "pooler" and not encoder.base.has_pooler:
        raise AdapterRejected("its pooling is the pooler, and this base has none")
    lengths = [
        *(sentence.dimensions or ()),
        *([sentence.truncate_dim] if sentence.truncate_dim else []),
    ]
    if any(n > encoder.base.hidden for n in lengths):
        raise AdapterRejected(
            f"its vectors' lengths {sorted(lengths)} are not all within the base's "
            f"{encoder.base.hidden}"
        )


def _refuse_no_effect(delta: Delta, adapter: Adapter, encoder: Encoder, allow_noop: bool) -> None:
    """What moves no output on the probe, and changes no weight either, does nothing."""
    if not all(math.isfinite(n) for n in (delta.relative, *delta.layers)):
        raise AdapterRejected("with this adapter the base gives NaN or infinity on the probe text")
    only_a_head = adapter.head is not None and not adapter.changes_encoder
    if allow_noop or only_a_head:
        return
    if delta.relative < TINY and not changes_a_weight(adapter, encoder.base):
        raise AdapterRejected(
            "the adapter leaves the base's output unchanged (an untrained one?): it would do "
            "nothing; send ?allow_noop=true if that is meant",
            [Problem("every lora_B is zero, or the targets do not reach the output")],
        )


async def _refuse_overflow(loader: Loader, adapter: Adapter, layers: Layers) -> None:
    if adapter.head is None:
        return
    ids, encoder = loader.probe_ids, loader.engine.encoder
    version = Version("", adapter, layers)
    sequence = Sequence(ids, [0] * len(ids), Want("logits"), version)
    logits = (await loader.engine.call(lambda: encoder.run([sequence])))[0]
    if not torch.isfinite(logits).all():
        raise AdapterRejected("with its head the probe text's logits are NaN or infinity")


def _report(digest: str, adapter: Adapter, delta: Delta, read: _Read, encoder: Encoder) -> Report:
    sentence = encoder.sentence(adapter)
    used = read.tensors - len(adapter.ignored)
    return Report(
        version=digest,
        task=adapter.task,
        labels=adapter.labels,
        scores=adapter.scores if adapter.head is not None else None,
        has_head=adapter.head is not None,
        layout=adapter.layout,
        kind=adapter.kind,
        rank=adapter.rank,
        scale=adapter.scale,
        scaling=adapter.scalings,
        targets=adapter.targets,
        bytes=read.file_bytes,
        resident_bytes=adapter.resident_bytes,
        tensors=TensorCounts(read.tensors, used, adapter.ignored),
        delta=Effect(delta.relative, tuple(delta.layers)),
        pooling=sentence.pooling,
        normalize=sentence.normalize,
        max_length=sentence.max_length,
        prompts=dict(sentence.prompts or {}),
        dimensions=sentence.dimensions or (),
        embedding_space=embedding_space(encoder.digest, digest),
        certified=len(read.goldens),
        warnings=tuple(read.warnings),
    )
