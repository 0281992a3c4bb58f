"""What the stages share: the card, the bases on it, texts, adapters, clocks, and the JSON they fill.

Knows how to measure; knows no stage.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, BertConfig

from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model.base_files import BaseFiles, find_base
from app.model.delta import unmerged_layers
from app.model.encoder import Encoder
from app.model.load_encoder import DTYPES, load_encoder
from app.model.sequence import Sequence as Tokens
from app.model.sequence import Want
from app.model.version import Version

SHORTEST, LONGEST = 8, 63  # tokens of a text, as everywhere in benchmarks/
MODES = ("float32", "tf32", "bfloat16", "float16")
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


@dataclass(frozen=True, eq=False)
class Bench:
    """One stage's run. path: its JSON, written again with each result. ends: when it is to stop."""

    device: torch.device
    small: bool
    path: Path
    ends: float
    results: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, value: Any) -> None:
        """Under "group/name": into a group."""
        *groups, name = key.split("/")
        place = self.results
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
        self.path.write_text(json.dumps(self.results))
        print(f"{self.path.stem}: {key}: {json.dumps(value)}", flush=True)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.ends

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_card:
            torch.cuda.synchronize()


def versions(bench: Bench) -> dict[str, Any]:
    """The machine's, as they are found: nothing here is set."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if bench.on_card:
        import triton

        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu"
        said = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found |= {"triton": triton.__version__, "card": said.stdout.strip()}
    return found


def base(bench: Bench, name: str, folder: str) -> BaseFiles:
    """minilm: the embedded base. bert-base: of random weights. Both tiny where all is small."""
    if name == "minilm" and not bench.small:
        return find_base(None, None)
    torch.manual_seed(0)
    config = BertConfig(**SMALL) if bench.small else BertConfig()
    AutoModel.from_config(config).save_pretrained(folder)
    return find_base(folder, None)


def encoder_of(bench: Bench, name: str, mode: str) -> Encoder:
    """mode: a dtype's name, or tf32: float32 whose products torch may run in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
    dtype = DTYPES["float32" if mode == "tf32" else mode]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_encoder(base(bench, name, folder), bench.device, dtype)


def texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(1000, 20000) for _ in range(rng.randint(SHORTEST, LONGEST))]
        for _ in range(count)
    ]


def dealt(all_ids: list[list[int]], through: Sequence[Version]) -> list[Tokens]:
    """Each text through one of the versions, at random but evenly."""
    turns = [through[i % len(through)] for i in range(len(all_ids))]
    random.Random(1).shuffle(turns)
    return [
        Tokens(ids, [0] * len(ids), Want("embedding"), version)
        for ids, version in zip(all_ids, turns, strict=True)
    ]


def drawn_version(encoder: Encoder, seed: int, rank: int = 8) -> Version:
    """Of this rank on every Linear, drawn on the device itself."""
    rng = torch.Generator(encoder.device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, device=encoder.device)

    layers = {
        path: LoRALayer(draw(rank, in_) / in_**0.5, draw(out, rank) * 0.01)
        for path, (out, in_) in encoder.base.linears.items()
    }
    adapter = laid_out(Adapter(layers, "peft"), encoder.device, encoder.dtype)
    return Version(str(seed), adapter, unmerged_layers(adapter, list(encoder.wrappers)))


def in_turn(
    bench: Bench, variants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each, every round in turn, so that a change of clocks meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in (*variants.values(), *variants.values()):
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            bench.wait()
            started = time.perf_counter()
            run()
            bench.wait()
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def median(times: list[float]) -> float:
    return round(statistics.median(times), 4)


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the rounds' own ratios."""
    both = zip(times[above], times[below], strict=True)
    return round(statistics.median(a / b for a, b in both), 3)


def traced(bench: Bench, run: Callable[[], object]) -> dict[str, Any]:
    """Launches, copies and the card's busy milliseconds of one run. Empty without a card."""
    if not bench.on_card:
        return {}
    bench.wait()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        bench.wait()
    work = [e for e in trace.events() or [] if e.device_type == torch.autograd.DeviceType.CUDA]
    copies = [e for e in work if e.name.startswith("Mem")]
    return {
        "launches": len(work) - len(copies),
        "copies": len(copies),
        "busy_ms": round(sum(e.time_range.elapsed_us() for e in work) / 1000, 4),
    }
