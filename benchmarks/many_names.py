"""A start with 10,000 names: how long it takes beyond a start with none, and in how much memory.

    python -m benchmarks.many_names [--names 10000] [--versions 36] [--model FOLDER] [--starts 3]

Rank 1 on the queries alone: it is the names that are measured, and not the adapters' bytes. With
--versions 10000 each name has a version of its own. A start is over when /readyz answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save

from app.catalog.local_store import LocalStore
from app.catalog.pointer import Entry, Pointer, digest_of, moved, now, to_json
from app.catalog.store import content_version
from app.model.base_files import find_base
from benchmarks.processes.loaded import CONFIG, last_line, metric, our_server, put


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=36)
    parser.add_argument("--model")
    parser.add_argument("--starts", type=int, default=3)
    args = parser.parse_args()
    option = ["--adapters-dir", "/none", *(["--model", args.model] if args.model else [])]
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as full:
        with our_server(Path(full), *option) as client:
            put(client, "n0", _adapter(args.model, 0))
        _fill(Path(full), args.names, args.versions, args.model)
        without = [_start(Path(empty), option) for _ in range(args.starts)]
        with_names = [_start(Path(full), option) for _ in range(args.starts)]
    base_s, names_s = (
        statistics.median(start["start_s"] for start in starts) for starts in (without, with_names)
    )
    last = with_names[-1]
    print(f"start: {names_s:.1f} s, {names_s - base_s:.1f} s beyond the base's own")
    print(f"memory: {(last['rss'] - without[-1]['rss']) / 2**20:.0f} MiB beyond the base's own")
    print(f"GET /adapters: all {last['all_ms']:.0f} ms, a page of 100 {last['page_ms']:.0f} ms")
    command = f"python -m benchmarks.many_names --names {args.names} --versions {args.versions}"
    print(last_line(command, without=without, with_names=with_names))


def _adapter(model: str | None, seed: int) -> dict[str, bytes]:
    config = json.loads((find_base(model, None).folder / "config.json").read_text())
    rng, hidden = torch.Generator().manual_seed(seed), config["hidden_size"]
    tensors = {}
    for n in range(config["num_hidden_layers"]):
        key = f"base_model.model.encoder.layer.{n}.attention.self.query"
        tensors[f"{key}.lora_A.weight"] = torch.randn(1, hidden, generator=rng)
        tensors[f"{key}.lora_B.weight"] = torch.randn(hidden, 1, generator=rng) * 0.02
    config = {**CONFIG, "r": 1, "target_modules": ["query"]}
    return {
        "adapter_model.safetensors": save(tensors, {"format": "pt"}),
        "adapter_config.json": json.dumps(config).encode(),
    }


def _fill(root: Path, names: int, versions: int, model: str | None) -> None:
    """More names in the store, as it lays them out, with the first one's measured report."""
    store = LocalStore(root)
    report = store.report(store.look("n0").version or "")
    digests = [_commit(root / "versions", _adapter(model, i), report) for i in range(versions)]
    for i in range(1, names):
        entry = Entry(digests[i % versions], now())
        pointer = replace(moved(Pointer(f"n{i}"), entry, 64), revision=1)
        (root / "names" / f"n{i}.json").write_text(json.dumps(to_json(pointer)))


def _commit(place: Path, files: dict[str, bytes], like: dict[str, Any] | None) -> str:
    folder = place / "new"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    version = content_version(folder, {})
    fields = {k: v for k, v in (like or {}).items() if k != "sha256"}
    space = fields["report"]["embedding_space"].partition("+")[0]
    own = {"version": version, "embedding_space": f"{space}+{version[:16]}"}
    fields["report"] = fields["report"] | own
    (folder / "options.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps({**fields, "sha256": digest_of(fields)}))
    if (place / version).exists():
        shutil.rmtree(folder)
    else:
        folder.rename(place / version)
    return version


def _start(store: Path, option: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    with our_server(store, *option) as client:
        start_s = time.perf_counter() - began
        cpu_s = metric(client, "process_cpu_seconds_total")
        rss = metric(client, "process_resident_memory_bytes")
        all_ms, page_ms = _ask_ms(client, "/adapters"), _ask_ms(client, "/adapters?limit=100")
        return {
            "start_s": start_s,
            "cpu_s": cpu_s,
            "rss": rss,
            "all_ms": all_ms,
            "page_ms": page_ms,
        }


def _ask_ms(client: httpx.Client, path: str) -> float:
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
