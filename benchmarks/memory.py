"""What a server's memory is made of: its base, a full load, an adapter, a merged copy.

    python -m benchmarks.memory [--size minilm|base|large]

The base is BERT of that size with random weights; the adapter has rank 8 on every Linear. The full
load is eight clients with 32 texts of 250 words each, more than any batch takes. Linux.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from transformers import BertConfig, BertModel

from app.model.embedded import embedded_base
from benchmarks.processes.loaded import last_line, metric, put, random_adapter
from benchmarks.processes.own import own_server, peak, reset_peak

SIZES = {"minilm": (384, 6, 12), "base": (768, 12, 12), "large": (1024, 24, 16)}
CLIENTS = 8
BODY = {"inputs": ["word " * 250] * 32}
MB = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="minilm")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as folder:
        save_base(size, Path(folder))
        with own_server(model=folder, max_queue_tokens=1_000_000) as (client, pid):
            mb = {"weights": (Path(folder) / "model.safetensors").stat().st_size}
            mb["started"] = reset_peak(pid)
            load(client)
            mb["full load, peak"] = peak(pid)
            put(client, "a", random_adapter(folder, 0))
            mb["one adapter of rank 8"] = metric(client, "bert_lora_resident_bytes")
            client.post("/adapters/a/merge").raise_for_status()
            mb["one merged copy"] = metric(client, "bert_lora_merged_bytes")
    numbers = {what: round(bytes_ / MB, 1) for what, bytes_ in mb.items()}
    print(last_line(f"python -m benchmarks.memory --size {size}", mb=numbers))


def save_base(size: str, folder: Path) -> None:
    """A random BERT with the embedded base's tokenizer."""
    hidden, layers, heads = SIZES[size]
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    BertModel(config).save_pretrained(folder)
    for path in embedded_base().glob("*token*"):
        shutil.copy(path, folder)


def load(client: httpx.Client) -> None:
    """All clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(
            lambda _: client.post("/embed", json=BODY, timeout=600), range(CLIENTS)
        ):
            answer.raise_for_status()


if __name__ == "__main__":
    main()
