"""How fast the embedded base answers here, and how fast elsewhere: servers over HTTP, libraries in
process.

    python -m benchmarks.peers [--rounds 11] [--cores 1 2] [--texts 64] [--only NAME …]

64 texts of 8 to 63 tokens, and one of 32, on one core unless told otherwise; 16 adapters of rank 8
on every Linear, mixed at random in one request. Each peer runs in a process of its own, pinned to
the cores; the client is pinned to the machine's last one. Peers that we don't bring along are
installed into build/peers. Every round asks each peer once (the one text five times, their median),
in turn, so that a noisy neighbour hits all of them; times and ratios are medians over rounds, a
ratio's halves being of the same round. `differs` is the largest difference of any number of a
vector from transformers' (with adapters: from PEFT's). A peer that cannot be installed or run is
named with the reason. The last line is one JSON with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.model.embedded import SHA256, embedded_base
from benchmarks.processes.asked import lengths, make_adapters, requests
from benchmarks.processes.environments import (
    CACHE,
    PINS,
    CannotInstall,
    commit,
    machine,
    python_of,
    versions_of,
)
from benchmarks.processes.started import PeerFailed, Server, Vectors, Worker, serving, worker

ADAPTERS = 16
REPEATS = {"1 text": 5}
PADDED, ENGINE, ENGINE_MIXED, PEFT = (
    "transformers", "engine", f"engine, {ADAPTERS} adapters", f"PEFT, {ADAPTERS} adapters",
)  # fmt: skip
INT8, INT8_MIXED = "engine, int8", f"engine, int8, {ADAPTERS} adapters"
OURS, OURS_MIXED = "ours", f"ours, {ADAPTERS} adapters"
INFINITY, INFINITY_PLAIN = "infinity-emb", "infinity-emb, no BetterTransformer"
SENTENCE, ONNX, ONNX_INT8 = "sentence-transformers", "onnxruntime", "onnxruntime, int8"
OPENVINO, FASTEMBED, POLYLORA = "openvino", "fastembed", f"PolyLoRA, {ADAPTERS} adapters"
OVER_HTTP, IN_PROCESS = "over HTTP", "in process"
Peer = Worker | Server


@dataclass(frozen=True, eq=False)
class Bench:
    """What every peer of one run is started with."""

    model: Path
    adapters: Path
    names: list[str]
    texts: int
    cores: list[int]
    folder: Path

    def job(self, *, mixed: bool) -> dict[str, Any]:
        asked = requests(self.texts, self.names if mixed else None)
        export = CACHE / "onnxruntime" / f"{SHA256[:12]}.onnx"
        return {
            "model": str(self.model), "adapters": str(self.adapters), "onnx": str(export),
            "threads": len(self.cores), "requests": asked,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cores", type=int, nargs="*", default=[1])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS))
    args = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[-1:])  # the client; peers choose their own
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        model, adapters = embedded_base(), Path(place) / "adapters"
        names = make_adapters(model, adapters, ADAPTERS)
        for cores in args.cores:
            logs = Path(place) / f"logs-{cores}"
            logs.mkdir()
            bench = Bench(model, adapters, names, args.texts, available[:cores], logs)
            runs += measure(bench, args.rounds, args.only)
    installed = {peer: versions_of(peer) for peer in PINS if (CACHE / peer / "made.json").exists()}
    ours = {name: version(name) for name in ("torch", "transformers", "peft")}
    ours["bert-lora-server"] = commit()
    command = shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]])
    result = {"command": command, "rounds": args.rounds, "machine": machine()}
    print(json.dumps({**result, "versions": ours | installed, "runs": runs}))


def measure(bench: Bench, rounds: int, wanted: list[str]) -> list[dict[str, Any]]:
    """Start the peers, ask them in turn, and say what came of it: a run for each kind of
    request.
    """
    failed: dict[str, str] = {}
    peers: dict[str, Peer] = {}
    vectors: dict[str, dict[str, Vectors]] = {}
    with ExitStack() as stack:
        for name in wanted:
            print(f"starting {name}", file=sys.stderr, flush=True)
            try:
                peer = stack.enter_context(PEERS[name][1](bench))
                vectors[name] = peer.vectors
                peers[name] = peer
            except (CannotInstall, PeerFailed) as error:
                failed[name] = str(error)
        times = _ask_in_turn(peers, list(bench.job(mixed=False)["requests"]), rounds, failed)
    asked = bench.job(mixed=False)["requests"]
    runs = [
        _run(bench, where, request, times, vectors, failed)
        for where in (OVER_HTTP, IN_PROCESS)
        for request in asked
        if any(PEERS[name][0] == where for name in wanted)
    ]
    for run in runs:
        run["tokens"] = sum(found := lengths(bench.model, asked[run["request"]]["texts"]))
        run["padded_tokens"] = len(found) * max(found)
        show(run)
    return runs


def _ask_in_turn(
    peers: dict[str, Peer], asked: list[str], rounds: int, failed: dict[str, str]
) -> dict[tuple[str, str], list[float]]:
    """(peer, request) -> milliseconds of each round. A peer that fails is out, with its times."""
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for request in asked:
            for name in [n for n in peers if n not in failed]:
                try:
                    ms = [peers[name].ask(request) for _ in range(REPEATS.get(request, 1))]
                except PeerFailed as error:
                    failed[name] = str(error)
                    continue
                times.setdefault((name, request), []).append(statistics.median(ms))
    return {key: found for key, found in times.items() if key[0] not in failed}


def _run(
    bench: Bench,
    where: str,
    request: str,
    times: Mapping[tuple[str, str], list[float]],
    vectors: Mapping[str, Mapping[str, Vectors]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    here = {n: times[n, request] for n in PEERS if PEERS[n][0] == where and (n, request) in times}
    plain, mixed = (OURS, OURS_MIXED) if where == OVER_HTTP else (ENGINE, ENGINE_MIXED)
    others = [n for n in here if n not in (plain, mixed, INT8, INT8_MIXED)]
    pairs = [(n, plain) for n in others if n not in (PEFT, POLYLORA)] + [(n, mixed) for n in others]
    pairs += [(mixed, plain), (INT8_MIXED, INT8)]
    pairs += [(n, INT8) for n in (plain, ONNX, ONNX_INT8)]
    cores = len(bench.cores)
    return {
        "title": f"{request} {where}, {cores} core{'s' if cores > 1 else ''}",
        "base": "minilm",
        "cores": cores,
        "where": where,
        "request": request,
        "ms": {name: round(statistics.median(ms), 2) for name, ms in here.items()},
        "ratios": {
            f"{a} / {b}": ratio(here[a], here[b]) for a, b in pairs if a in here and b in here
        },
        "differs": {name: differs(vectors, name, request) for name in here},
        "failed": {n: why for n, why in failed.items() if PEERS[n][0] == where},
    }


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the rounds' own ratios: both were measured next to each other."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def differs(vectors: Mapping[str, Mapping[str, Vectors]], name: str, request: str) -> float | None:
    """From the reference; None where that did not run."""
    reference = PEFT if name.endswith("adapters") else PADDED
    if reference not in vectors:
        return None
    found = np.array(vectors[name][request]) - np.array(vectors[reference][request])
    return float(f"{np.abs(found).max():.1e}")


def show(run: Mapping[str, Any]) -> None:
    print(f"\n{run['title']}, {run['tokens']} tokens (padded {run['padded_tokens']})")
    for name, ms in run["ms"].items():
        print(f"  {name:34} {ms:10.2f} ms   differs by {run['differs'][name]}")
    for name, value in run["ratios"].items():
        print(f"  {name:54} {value:8.3f}")
    for name, why in run["failed"].items():
        print(f"  {name} did not run: {why}", flush=True)


@contextmanager
def _ours(bench: Bench, *, mixed: bool) -> Iterator[Peer]:
    bodies = {}
    for name, request in bench.job(mixed=mixed)["requests"].items():
        chosen = {"adapters": request["adapters"]} if mixed else {}
        bodies[name] = orjson.dumps({"inputs": request["texts"], **chosen})
    command = [sys.executable, "-m", "bert_lora", "serve", "--port", "PORT", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as store:
        folders = ["--store", store, "--adapters-dir", str(bench.adapters)]
        with serving([*command, *folders], {}, "/readyz", bench.cores, bench.folder) as started:
            yield Server(started, "/embed", bodies, list)


@contextmanager
def _infinity(bench: Bench, *option: str) -> Iterator[Peer]:
    """float32 like the rest: its default is what the device likes best. What else it does is its
    default.
    """
    bodies = {
        name: orjson.dumps({"model": "base", "input": request["texts"]})
        for name, request in bench.job(mixed=False)["requests"].items()
    }
    command = [
        str(python_of("infinity-emb").with_name("infinity_emb")), "v2", "--model-id", str(bench.model),
        "--served-model-name", "base", "--engine", "torch", "--device", "cpu", "--dtype", "float32",
        "--host", "127.0.0.1", "--port", "PORT", "--log-level", "warning", *option,
    ]  # fmt: skip
    home = {"INFINITY_HOME": str(bench.adapters.parent)}  # else it makes a folder here
    with serving(command, home, "/health", bench.cores, bench.folder) as started:
        yield Server(started, "/embeddings", bodies, lambda a: [d["embedding"] for d in a["data"]])


@contextmanager
def _library(bench: Bench, kind: str, *, mixed: bool = False) -> Iterator[Peer]:
    library = kind.removesuffix(" int8")
    python = python_of(library) if library in PINS else Path(sys.executable)
    job = bench.job(mixed=mixed)
    with worker(python, kind, job, bench.cores, bench.folder) as started:
        yield started


Start = Callable[[Bench], Any]
PEERS: dict[str, tuple[str, Start]] = {
    OURS: (OVER_HTTP, lambda b: _ours(b, mixed=False)),
    OURS_MIXED: (OVER_HTTP, lambda b: _ours(b, mixed=True)),
    INFINITY: (OVER_HTTP, _infinity),
    INFINITY_PLAIN: (OVER_HTTP, lambda b: _infinity(b, "--no-bettertransformer")),
    ENGINE: (IN_PROCESS, lambda b: _library(b, "engine")),
    ENGINE_MIXED: (IN_PROCESS, lambda b: _library(b, "engine", mixed=True)),
    INT8: (IN_PROCESS, lambda b: _library(b, "engine int8")),
    INT8_MIXED: (IN_PROCESS, lambda b: _library(b, "engine int8", mixed=True)),
    PADDED: (IN_PROCESS, lambda b: _library(b, "transformers")),
    SENTENCE: (IN_PROCESS, lambda b: _library(b, SENTENCE)),
    ONNX: (IN_PROCESS, lambda b: _library(b, ONNX)),
    ONNX_INT8: (IN_PROCESS, lambda b: _library(b, "onnxruntime int8")),
    OPENVINO: (IN_PROCESS, lambda b: _library(b, OPENVINO)),
    FASTEMBED: (IN_PROCESS, lambda b: _library(b, FASTEMBED)),
    PEFT: (IN_PROCESS, lambda b: _library(b, "PEFT", mixed=True)),
    POLYLORA: (IN_PROCESS, lambda b: _library(b, "polylora", mixed=True)),
}


if __name__ == "__main__":
    main()
