"""What a packed forward costs, against padded transformers and against the bare matrix products.

    python -m benchmarks.forward [--rounds 5] [--base bert-base|minilm] [--cores 1 2] [--texts 64]

Texts of 8 to 63 tokens through the server's own engine, as one request; adapters of rank 8 on every
Linear of the encoder, at random over the texts. Every round runs each variant once, in turn, so
that a noisy neighbour hits all of them; ratios are medians over rounds. The last line is one JSON
with machine and versions.
"""

from __future__ import annotations

import argparse
import asyncio
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, BertConfig

from app.adapters.values import Adapter, LoRALayer, laid_out
from app.assemble import CPU_BATCH_TOKENS, CPU_BATCHES
from app.engine.engine import Engine
from app.model.base_files import find_base
from app.model.delta import unmerged_layers
from app.model.encoder import Encoder
from app.model.load_encoder import DTYPES, load_encoder
from app.model.lora import merge_lora
from app.model.machine import keep_memory
from app.model.sequence import Sequence, Want
from app.model.version import Version

SHORTEST, LONGEST = 8, 63
ADAPTERS = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", choices=["bert-base", "minilm"], action="append")
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--one", action="store_true", help="in this process, on these cores")
    args = parser.parse_args()
    bases = args.base or ["bert-base", "minilm"]
    if args.one:
        keep_memory()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(bases[0], args, folder)))
        return
    found = []
    for base in bases:
        for cores in args.cores:
            found.append(_in_fresh_process(base, cores))
            show(found[-1])
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "platform": platform.platform()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"machine": machine, "versions": versions, "runs": found}))


def _in_fresh_process(base: str, cores: int) -> dict[str, Any]:
    """Pinned to its cores: torch fixes its pools at start."""
    these = sorted(os.sched_getaffinity(0))[:cores]
    command = [
        *("taskset", "-c", ",".join(map(str, these))),
        *(sys.executable, "-m", "benchmarks.forward", *sys.argv[1:]),
        *("--one", "--base", base, "--cores", str(cores)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(base: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    if base == "bert-base":
        torch.manual_seed(0)
        AutoModel.from_config(BertConfig()).save_pretrained(folder)
    files = find_base(folder if base == "bert-base" else None, None)
    dtype = DTYPES[args.dtype]
    encoder = load_encoder(files, torch.device("cpu"), dtype)
    plain = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    rng = random.Random(0)
    texts = [
        [rng.randrange(1000, 20000) for _ in range(rng.randint(SHORTEST, LONGEST))]
        for _ in range(args.texts)
    ]
    counts = [n for n in ADAPTERS if n <= args.texts]
    versions = [random_version(encoder, seed, args.rank) for seed in range(max(counts))]
    copies = merge_lora(encoder.wrappers, versions[0].adapter, versions[0].layers)
    merged = replace(versions[0], layers=copies)
    cores = torch.get_num_threads()
    batches = min(CPU_BATCHES, cores)
    engine = Engine(encoder, CPU_BATCH_TOKENS, None, batches, cores, batches)
    engine.start()
    variants = {
        "padded": padded(plain, texts),
        "bare products": bare_products(encoder, sum(map(len, texts))),
        "packed": packed(engine, texts, [engine.base]),
        **{f"packed, {n} adapters": packed(engine, texts, versions[:n]) for n in counts},
        "packed, 1 merged": packed(engine, texts, [merged]),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(args.rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    engine.stop()
    cosine = {} if dtype == torch.float32 else {"cosine": cosine_to_float32(encoder, texts)}
    return {
        "base": base,
        "cores": torch.get_num_threads(),
        "dtype": args.dtype,
        "rank": args.rank,
        "texts": args.texts,
        "tokens": sum(map(len, texts)),
        "padded_tokens": len(texts) * max(map(len, texts)),
        **cosine,
        "ms": {name: round(statistics.median(t), 1) for name, t in times.items()},
        "ratios": {
            "packed / bare products": ratio(times, "packed", "bare products"),
            "padded / packed": ratio(times, "padded", "packed"),
            **{
                f"{n} adapters / packed": ratio(times, f"packed, {n} adapters", "packed")
                for n in counts
            },
            "merged / packed": ratio(times, "packed, 1 merged", "packed"),
        },
    }


def cosine_to_float32(encoder: Encoder, texts: list[list[int]]) -> dict[str, float]:
    """Of the texts' embeddings, against the same base in float32."""
    exact = load_encoder(encoder.files, encoder.device, torch.float32)
    rows, wanted = (
        torch.stack(e.run([_sequence(ids, e.version) for ids in texts])) for e in (encoder, exact)
    )
    found = torch.nn.functional.cosine_similarity(rows.double(), wanted.double())
    return {"mean": round(float(found.mean()), 6), "least": round(float(found.min()), 6)}


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
    """Every Linear's product over all tokens and nothing else: the floor of any forward."""
    widths = {
        linears: encoder.base.linears[linears.members.paths[0]][1] for linears in encoder.products
    }
    inputs = {
        width: torch.randn(1, tokens, width, dtype=encoder.adapters_dtype)
        for width in set(widths.values())
    }

    @torch.inference_mode()
    def run() -> object:
        for linears, width in widths.items():
            linears.frozen(inputs[width])
        return None

    return run


def packed(engine: Engine, texts: list[list[int]], versions: list[Version]) -> Callable[[], object]:
    """One request, its texts each through one of the versions, at random but evenly."""
    rng = random.Random(1)
    dealt = list(itertools.islice(itertools.cycle(versions), len(texts)))
    rng.shuffle(dealt)
    sequences = [_sequence(ids, version) for ids, version in zip(texts, dealt, strict=True)]

    async def run() -> None:  # no result: asyncio.run would print it on its way out
        await engine.run(sequences)

    return lambda: asyncio.run(run())


def _sequence(ids: list[int], version: Version) -> Sequence:
    return Sequence(ids, [0] * len(ids), Want("embedding"), version)


def random_version(encoder: Encoder, seed: int, rank: int) -> Version:
    rng = torch.Generator().manual_seed(seed)
    layers = {
        path: LoRALayer(
            torch.randn(rank, in_, generator=rng) / in_**0.5,
            torch.randn(out, rank, generator=rng) * 0.01,
        )
        for path, (out, in_) in encoder.base.linears.items()
    }
    adapter = laid_out(Adapter(layers, "peft", 2.0), encoder.device, encoder.adapters_dtype)
    ready = unmerged_layers(adapter, list(encoder.wrappers))
    return Version(str(seed), adapter, ready)


def show(run: dict[str, Any]) -> None:
    print(f"\n{run['base']}, {run['dtype']}, {run['cores']} cores, {run['texts']} texts", end="")
    print(f" of {run['tokens']} tokens (padded {run['padded_tokens']}), rank {run['rank']}")
    for name, ms in run["ms"].items():
        print(f"  {name:24} {ms:9.1f} ms")
    for name, value in run["ratios"].items():
        print(f"  {name:24} {value:9.3f}", flush=True)
    if "cosine" in run:
        print(f"  cosine to float32        {run['cosine']}")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
