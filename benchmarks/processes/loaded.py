"""Our own server as a process, adapters to put into it, and `python -m benchmarks.load` against
it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save

from app.model.base_files import find_base
from benchmarks.load.percentiles import machine
from benchmarks.processes.started import serving

CORES = sorted(os.sched_getaffinity(0))
CONFIG = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "task_type": "FEATURE_EXTRACTION",
    "target_modules": ["query", "key", "value", "dense"], "exclude_modules": ["pooler.dense"],
}  # fmt: skip


@contextmanager
def our_server(
    store: Path, *option: str, device: str = "cpu", module: str = "bert_lora"
) -> Iterator[httpx.Client]:
    """On all cores, which the load shares with it."""
    command = [sys.executable, "-m", module, "serve", "--port", "PORT", "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--store", str(store), *option]
        with serving(command, {}, "/readyz", CORES, Path(folder)) as started:
            yield started.client


def bench(client: httpx.Client, *option: str) -> subprocess.Popen[str]:
    """`python -m benchmarks.load` in a process of its own; `said` waits for it."""
    url = str(client.base_url).rstrip("/")
    command = [sys.executable, "-m", "benchmarks.load", url, "--json", *option]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Its report."""
    return dict(json.loads(process.communicate()[0]))


def random_adapter(model: str | None, seed: int) -> dict[str, bytes]:
    """A PEFT folder's files: rank 8 on every Linear of every layer."""
    config = json.loads((find_base(model, None).folder / "config.json").read_text())
    rng = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors = {}
    for n in range(config["num_hidden_layers"]):
        layers = {f"attention.self.{x}": (hidden, hidden) for x in ("query", "key", "value")}
        layers |= {"attention.output.dense": (hidden, hidden)}
        layers |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for path, (out, in_) in layers.items():
            key = f"base_model.model.encoder.layer.{n}.{path}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(8, in_, generator=rng) / in_**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, 8, generator=rng) * 0.02
    return {
        "adapter_model.safetensors": save(tensors, {"format": "pt"}),
        "adapter_config.json": json.dumps(CONFIG).encode(),
    }


def put(client: httpx.Client, name: str, files: dict[str, bytes]) -> None:
    client.put(f"/adapters/{name}", files=files).raise_for_status()


def metric(client: httpx.Client, name: str) -> float:
    """One of /metrics, without labels; 0 where it is not there."""
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def last_line(command: str, **found: Any) -> str:
    """The JSON that plot.py and people read."""
    return json.dumps({"command": command, "machine": machine(), **found})
