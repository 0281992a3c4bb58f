"""A packed forward on the card: what adapters cost, how many launches, how busy the card is.

Beside it, in the same rounds: plain transformers over the padded batch, and every Linear's bare
product, and the same without graphs. PEFT's mixed batch of 64 adapters comes last, a pass for each base.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertConfig

from app.model.base_files import find_base
from app.model.encoder import Encoder
from app.model.load_encoder import DTYPES
from app.model.sequence import Sequence as Tokens
from app.model.version import Version
from benchmarks.gpu.card import (
    SMALL,
    Bench,
    dealt,
    drawn_version,
    encoder_of,
    in_turn,
    median,
    ratio,
    texts,
    traced,
)

PLAN = (
    ("bert-base", "bfloat16"),
    ("minilm", "float32"),
    ("PEFT", "minilm", "float32"),
    ("bert-base", "float32"),
    ("minilm", "bfloat16"),
    ("PEFT", "bert-base", "bfloat16"),
    ("bert-base", "tf32"),
    ("minilm", "tf32"),
    ("bert-base", "float16"),
    ("minilm", "float16"),
    ("PEFT", "minilm", "bfloat16"),
    ("PEFT", "bert-base", "float32"),
)
COUNTS = {1: (1,), 8: (1, 8), 32: (1, 16), 512: (1, 16, 64, 256)}
PEFT_ADAPTERS, RANK, ROUNDS = 64, 8, 5
BATCH_TOKENS = 16_384


def measure(bench: Bench) -> None:
    """What is asked for most comes first: a lease may end at any time."""
    for step in PLAN[:3] if bench.small else PLAN:
        if bench.late:
            return
        (peft_beside if step[0] == "PEFT" else one)(bench, *step[-2:])
        gc.collect()


def one(bench: Bench, name: str, mode: str) -> None:
    """One base in one dtype: every count of texts, through every count of adapters."""
    encoder = encoder_of(bench, name, mode)
    plain = plain_model(bench, name, mode)
    sizes = {4: (1, 2)} if bench.small else COUNTS
    drawn = [drawn_version(encoder, seed) for seed in range(max(map(max, sizes.values())))]
    for count, adapters in sizes.items():
        all_ids = texts(count)
        variants: dict[str, Callable[[], object]] = {
            "plain transformers": padded(bench, plain, all_ids),
            "bare products": bare_products(encoder, sum(map(len, all_ids))),
            "base": packed(encoder, all_ids, [encoder.version]),
            **{f"{n} adapters": packed(encoder, all_ids, drawn[:n]) for n in adapters},
        }
        if encoder.graphs:
            launched = replace(encoder, graphs=None)
            variants |= {
                "base, launched": packed(launched, all_ids, [encoder.version]),
                "1 adapters, launched": packed(launched, all_ids, drawn[:1]),
            }
        times = in_turn(bench, variants, 2 if bench.small else ROUNDS)
        found: dict[str, Any] = {
            variant: {"ms": median(times[variant]), **traced(bench, run)}
            for variant, run in variants.items()
        }
        for cell in found.values():
            if "busy_ms" in cell:
                cell["busy %"] = round(100 * cell["busy_ms"] / cell["ms"], 1)
        found["tokens"] = sum(map(len, all_ids))
        for n in adapters:
            found[f"{n} adapters"]["over the base"] = ratio(times, f"{n} adapters", "base")
        found["base"]["over plain transformers"] = ratio(times, "base", "plain transformers")
        bench.add(f"{name}/{mode}/{count} texts", found)


def packed(
    encoder: Encoder, all_ids: list[list[int]], through: list[Version]
) -> Callable[[], object]:
    """In batches of as many tokens as a server's."""
    batches: list[list[Tokens]] = [[]]
    for sequence in dealt(all_ids, through):
        if sum(len(s.ids) for s in batches[-1]) + len(sequence.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    return lambda: [encoder.run(batch) for batch in batches]


def plain_model(bench: Bench, name: str, mode: str) -> Any:
    dtype = DTYPES["float32" if mode == "tf32" else mode]
    if name == "minilm" and not bench.small:
        model = AutoModel.from_pretrained(find_base(None, None).folder, dtype=dtype)
    else:
        model = AutoModel.from_config(BertConfig(**SMALL) if bench.small else BertConfig())
    return model.to(bench.device, dtype).eval()


def padded(bench: Bench, plain: Any, all_ids: list[list[int]], **more: Any) -> Callable[[], object]:
    """One batch padded to the longest, mean-pooled, fetched from the card, as ours is."""
    width = max(map(len, all_ids))
    ids, mask = (torch.zeros(len(all_ids), width, dtype=torch.long) for _ in range(2))
    for i, text in enumerate(all_ids):
        ids[i, : len(text)] = torch.tensor(text)
        mask[i, : len(text)] = 1

    @torch.inference_mode()
    def run() -> object:
        on, seen = ids.to(bench.device), mask.to(bench.device)
        hidden = plain(input_ids=on, attention_mask=seen, **more).last_hidden_state.float()
        rows = (hidden * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return torch.nn.functional.normalize(rows, dim=1).cpu()

    return run


def bare_products(encoder: Encoder, tokens: int) -> Callable[[], object]:
    """Every Linear's product over all tokens and nothing else: the floor of any eager forward."""
    layers = [product.frozen for product in encoder.products]
    shapes = [encoder.base.linears[product.members.paths[0]][1] for product in encoder.products]
    inputs = {
        n: torch.randn(tokens, n, device=encoder.device).to(encoder.dtype) for n in set(shapes)
    }

    @torch.inference_mode()
    def run() -> None:
        for layer, width in zip(layers, shapes, strict=True):
            layer(inputs[width])

    return run


def peft_beside(bench: Bench, name: str, mode: str) -> None:
    """PEFT's mixed batch, one adapter's name a row, against ours through as many adapters."""
    count, adapters = (4, 2) if bench.small else (512, PEFT_ADAPTERS)
    encoder = encoder_of(bench, name, mode)
    started = time.perf_counter()
    mixed = peft_model(bench, name, mode, adapters)
    bench.add(f"PEFT/{name}/{mode}/load_s", round(time.perf_counter() - started, 1))
    drawn = [drawn_version(encoder, seed) for seed in range(adapters)]
    for texts_ in (adapters, count):
        all_ids = texts(texts_)
        names = [f"a{i % adapters}" for i in range(texts_)]
        variants: dict[str, Callable[[], object]] = {
            "PEFT, mixed": padded(bench, mixed, all_ids, adapter_names=names),
            "ours": packed(encoder, all_ids, drawn),
        }
        times = in_turn(bench, variants, 3)
        found = {variant: median(times[variant]) for variant in variants}
        times_ours = ratio(times, "PEFT, mixed", "ours")
        bench.add(f"PEFT/{name}/{mode}/{texts_} texts", {"ms": found, "times ours": times_ours})


def peft_model(bench: Bench, name: str, mode: str, adapters: int) -> Any:
    def config() -> LoraConfig:
        targets = ["query", "key", "value", "dense"]
        return LoraConfig(r=RANK, lora_alpha=16, target_modules=targets, init_lora_weights=False)

    model = get_peft_model(
        plain_model(bench, name, mode), config(), adapter_name="a0", autocast_adapter_dtype=False
    )
    for i in range(1, adapters):
        model.add_adapter(f"a{i}", config())
    return model.to(bench.device, DTYPES["float32" if mode == "tf32" else mode]).eval()
