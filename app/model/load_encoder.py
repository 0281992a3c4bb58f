"""The frozen base from its files: laid out for this machine, and tried.

Knows files, dtypes and what this machine serves; runs no batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from app.adapters.values import Adapter
from app.model.base_files import BaseFiles, BaseRefused
from app.model.delta import BASE_LAYERS
from app.model.encoder import Encoder, digest_of
from app.model.fast_paths import try_paths, warn
from app.model.flat import flatten
from app.model.int8 import Int8Linear, frozen_of, quantise
from app.model.linears import Linears
from app.model.lora import insert_lora
from app.model.machine import first_line
from app.model.outline import Facts
from app.model.plain_base import describe, read_plain
from app.model.version import Version

log = logging.getLogger(__name__)
# The first position is the padding id + 1.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
TRIED_TOKENS = 128  # of the forward that is tried at start
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def load_encoder(files: BaseFiles, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load the base frozen and ready for packed batches. Raises BaseRefused with the reason."""
    plain = read_plain(files, device, torch.float32 if dtype == torch.int8 else dtype)
    facts, model = plain.facts, plain.model
    has_pooler = getattr(model, "pooler", None) is not None
    base = describe(files, plain, has_pooler)
    if dtype == torch.int8:
        base = replace(base, tensors=quantise(model))
    frozen = frozen_of(model)
    paths = try_paths((facts.heads, facts.head_width), device, dtype, set(base.linears.values()))
    wrappers = insert_lora(model)
    pooler = next((wrappers[p] for p in ("pooler.dense", "pooler") if p in wrappers), None)
    if pooler is not None:
        model.pooler = None  # type: ignore[assignment]  # run over first tokens, in _pool
    first = _first_position(facts)
    positions = facts.positions - first
    flat = flatten(plain.forward(positions, device), model, wrappers, paths.attention, paths.joins)
    pool = None if pooler is None else Linears([pooler])
    _fuse([*flat.products, *([pool] if pool else [])], paths.fused)
    encoder = Encoder(
        files,
        base,
        device,
        dtype,
        min(files.sentence.max_length or positions, positions),
        facts.vocabulary,
        wrappers,
        Version(digest_of(frozen), Adapter({}, layout="base"), BASE_LAYERS),
        paths.slow,
        frozen,
        first,
        facts.takes_types,
        flat,
        pool,
        paths.kernels_on,
        paths.varlen,
    )
    _try_forward(encoder)
    if device.type == "cuda" and not {"updates", "attention"} & set(paths.slow):
        add_graphs(encoder)
    return encoder


def _first_position(facts: Facts) -> int:
    """Raises BaseRefused."""
    if facts.model_type not in POSITIONS_AFTER_PADDING:
        return 0
    if facts.padding is None:
        raise BaseRefused(f"a {facts.model_type} model counts from pad_token_id, and has none")
    return facts.padding + 1


def _fuse(products: Iterable[Linears], shapes: frozenset[tuple[int, int]]) -> None:
    """On a GPU: the product of these (out, in), and all updates of it, in one launch."""
    for product in products:
        frozen, of = product.frozen, product.members
        if isinstance(frozen, Int8Linear) or frozen.weight is None:
            continue
        neighbours = bool((np.diff(of.numbers) == 1).all())  # in the table, which is read in steps
        if neighbours and (int(of.ends[1]), frozen.weight.shape[1]) in shapes:
            from app.model.fused import fused

            product.fused = fused(frozen, len(of.paths))


class NotFinite(BaseRefused):
    """The base overflows in this dtype."""


def load_in_half(files: BaseFiles, device: torch.device) -> Encoder:
    """In float16; in bfloat16, which has fewer digits and float32's range, where float16 overflows.

    Raises BaseRefused.
    """
    try:
        return load_encoder(files, device, torch.float16)
    except NotFinite as error:
        log.warning("dtype: %(why)s; bfloat16 serves", {"why": error})
        return load_encoder(files, device, torch.bfloat16)


def _try_forward(encoder: Encoder) -> None:
    """Run the base once, here and not in the first request. Raises BaseRefused."""
    what = f"{encoder.files.id} in {encoder.dtype}"
    count = min(TRIED_TOKENS, encoder.max_length)
    try:
        drawn = np.random.default_rng(0).integers(0, encoder.vocabulary, count)
        out = encoder.states(drawn.tolist()).out
    except Exception as error:  # whatever torch, an operator or a driver raises
        where = f"{what} does not run on {encoder.device}"
        raise BaseRefused(f"{where}: {first_line(error)}") from error
    if not out.isfinite().all():
        raise NotFinite(f"{what} gives numbers that are not finite: set another DTYPE")


@torch.inference_mode()
def add_graphs(encoder: Encoder) -> None:
    """Where the other fast paths serve; why not is said."""
    from app.model.graphs import graphs_of

    graphs = graphs_of(encoder)
    if isinstance(graphs, str):
        warn("graphs", graphs)
        encoder.slow_paths = {**encoder.slow_paths, "graphs": graphs}
    else:
        encoder.graphs = graphs
