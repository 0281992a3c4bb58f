"""What stands around the forward: one text, and 32, end to end over HTTP against the bare forward.

    python -m benchmarks.around [--rounds 7] [--model FOLDER]

The server has all cores, and so has the forward, which runs in this process over the same tokens.
Every round asks the server and runs the forward, in turn, each some times in a row (their median);
ratios are medians over rounds. The last line is one JSON with the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from app.engine.tokenizer import Cut, load_tokenizer, tokenize
from app.model import machine
from app.model.base_files import find_base
from app.model.load_encoder import load_encoder
from app.model.sequence import Sequence, Want
from benchmarks.processes.asked import requests
from benchmarks.processes.loaded import last_line, our_server

IN_A_ROW = {"1 text": 100, "32 texts": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model")
    args = parser.parse_args()
    machine.keep_memory()
    files = find_base(args.model, None)
    encoder = load_encoder(files, torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    option = ["--model", args.model] if args.model else []
    ratios: dict[str, float] = {}
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as store, our_server(Path(store), *option) as client:
        host, port = client.base_url.host, client.base_url.port
        connection = http.client.HTTPConnection(host, port)
        for name, asked in requests(32, None).items():
            body = json.dumps({"inputs": asked["texts"]}).encode()
            cut = Cut(encoder.max_length, True, "right")
            tokens = tokenize(tokenizer, asked["texts"], cut, "")
            want = Want("embedding", "mean", True)
            sequences = [Sequence(t.ids, t.types, want, encoder.version) for t in tokens]
            rounds = [
                (
                    _served_ms(connection, body, IN_A_ROW[name]),
                    _median_ms(lambda s=sequences: encoder.run(s), IN_A_ROW[name]),
                )
                for _ in range(args.rounds + 1)
            ][1:]
            served, alone = ([r[i] for r in rounds] for i in (0, 1))
            took[f"{name} over HTTP"] = round(statistics.median(served), 2)
            took[f"{name}, forward alone"] = round(statistics.median(alone), 2)
            ratio = statistics.median(s / a for s, a in rounds)
            ratios[f"{name}: over HTTP / forward"] = round(ratio, 3)
    for what, value in {**took, **ratios}.items():
        print(f"{what:32} {value}")
    command = f"python -m benchmarks.around --rounds {args.rounds}"
    print(last_line(command, ms=took, ratios=ratios))


def _served_ms(connection: http.client.HTTPConnection, body: bytes, times: int) -> float:
    connection.close()  # the server has, where the forward alone took 5 s
    return _median_ms(lambda: _ask(connection, body), times)


def _ask(connection: http.client.HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(answer.status)


def _median_ms(do: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        do()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


if __name__ == "__main__":
    main()
