"""What a packed forward costs, against padded transformers and against the bare matrix products.

    python -m benchmarks.forward [--rounds 5] [--base bert-base|minilm] [--threads 1 2]

64 texts of 8 to 63 tokens, in batches of the server's own token budget; adapters of rank 8 on every Linear of the encoder. Every round runs each
variant once, in turn, so that a noisy neighbour hits all of them; ratios are medians over rounds.
The last line is one JSON with machine and versions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, BertConfig

from app.adapters.adapter import Adapter, LoRALayer
from app.main import CPU_BATCH_TOKENS
from app.model.base_files import find_base
from app.model.batch import Item, Want
from app.model.delta import BASE_LAYERS, unmerged_layers
from app.model.encoder import Encoder, load_encoder
from app.model.linear import FrozenLinear
from app.model.lora import merge_lora

TEXTS, SHORTEST, LONGEST, RANK = 64, 8, 63, 8
ADAPTERS = (1, 4, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", choices=["bert-base", "minilm"], action="append")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--one", action="store_true", help="in this process, on these threads")
    args = parser.parse_args()
    bases = args.base or ["bert-base", "minilm"]
    if args.one:
        print(json.dumps(measure(bases[0], args.threads[0], args.rounds)))
        return
    found = []
    for base in bases:
        for threads in args.threads:
            found.append(_in_fresh_process(base, threads, args.rounds))
            show(found[-1])
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "platform": platform.platform()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"machine": machine, "versions": versions, "runs": found}))


def _in_fresh_process(base: str, threads: int, rounds: int) -> dict[str, Any]:
    """Pinned to as many cores as threads: torch fixes its pools at start."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [
        *("taskset", "-c", ",".join(map(str, cores))),
        *(sys.executable, "-m", "benchmarks.forward", "--one", "--base", base),
        *("--threads", str(threads), "--rounds", str(rounds)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(base: str, threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if base == "bert-base":
            torch.manual_seed(0)
            AutoModel.from_config(BertConfig()).save_pretrained(folder)
        files = find_base(folder if base == "bert-base" else None, None)
        encoder = load_encoder(files, torch.device("cpu"), torch.float32)
        plain = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    rng = random.Random(0)
    texts = [
        [rng.randrange(1000, 20000) for _ in range(rng.randint(SHORTEST, LONGEST))]
        for _ in range(TEXTS)
    ]
    variants = {
        "padded": padded(plain, texts),
        "bare products": bare_products(encoder, sum(map(len, texts))),
        "packed": packed(encoder, texts, 0),
        **{f"packed, {n} adapters": packed(encoder, texts, n) for n in ADAPTERS},
        "packed, 1 merged": packed(encoder, texts, 1, merged=True),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return {
        "base": base,
        "threads": threads,
        "tokens": sum(map(len, texts)),
        "padded_tokens": TEXTS * max(map(len, texts)),
        "ms": {name: round(statistics.median(t), 1) for name, t in times.items()},
        "ratios": {
            "packed / bare products": ratio(times, "packed", "bare products"),
            "padded / packed": ratio(times, "padded", "packed"),
            **{
                f"{n} adapters / packed": ratio(times, f"packed, {n} adapters", "packed")
                for n in ADAPTERS
            },
            "merged / packed": ratio(times, "packed, 1 merged", "packed"),
        },
    }


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the rounds' own ratios: both were measured next to each other."""
    return round(
        statistics.median(a / b for a, b in zip(times[above], times[below], strict=True)), 3
    )


def padded(plain: Any, texts: list[list[int]]) -> Callable[[], object]:
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text)
        mask[i, : len(text)] = 1

    @torch.inference_mode()
    def run() -> object:
        hidden = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return run


def bare_products(encoder: Encoder, tokens: int) -> Callable[[], object]:
    """Every Linear's product over all tokens and nothing else: the floor of any fp32 forward."""
    layers = [w.frozen for path, w in encoder.wrappers.items() if "pooler" not in path]
    inputs = {w.shape[1]: torch.randn(tokens, w.shape[1]) for w in map(_weight, layers)}

    @torch.inference_mode()
    def run() -> object:
        for layer in layers:
            layer(inputs[_weight(layer).shape[1]])
        return None

    return run


def _weight(layer: FrozenLinear) -> torch.Tensor:
    if layer.weight is None:
        raise ValueError("the base keeps its plain weights")
    return layer.weight


def packed(
    encoder: Encoder, texts: list[list[int]], adapters: int, merged: bool = False
) -> Callable[[], object]:
    made = [random_adapter(encoder, seed) for seed in range(adapters)]
    layers = [unmerged_layers(a) for a in made]
    if merged:
        pairs = zip(made, layers, strict=True)
        layers = [merge_lora(encoder.wrappers, a, unmerged) for a, unmerged in pairs]
    turns = itertools.cycle(layers or [BASE_LAYERS])
    items = [Item(ids, [0] * len(ids), Want("embedding"), next(turns)) for ids in texts]
    batches = cut(items, CPU_BATCH_TOKENS)
    return lambda: [encoder.run(batch) for batch in batches]


def cut(items: list[Item], budget: int) -> list[list[Item]]:
    """Into batches as the server's queue would: round the adapters, up to the token budget."""
    batches: list[list[Item]] = [[]]
    room = budget
    for item in items:
        if batches[-1] and len(item.ids) > room:
            batches.append([])
            room = budget
        batches[-1].append(item)
        room -= len(item.ids)
    return batches


def random_adapter(encoder: Encoder, seed: int) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    layers = {
        path: LoRALayer(
            torch.randn(RANK, in_, generator=rng) / in_**0.5,
            torch.randn(out, RANK, generator=rng) * 0.01,
        )
        for path, (out, in_) in encoder.base.linears.items()
    }
    return Adapter(layers, "peft", 2.0)


def show(run: dict[str, Any]) -> None:
    print(f"\n{run['base']}, {run['threads']} threads, {run['tokens']} tokens", end="")
    print(f" (padded {run['padded_tokens']})")
    for name, ms in run["ms"].items():
        print(f"  {name:24} {ms:9.1f} ms")
    for name, value in run["ratios"].items():
        print(f"  {name:24} {value:9.3f}", flush=True)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
