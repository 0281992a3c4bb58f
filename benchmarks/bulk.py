"""How much of a server's own rate is left to who asks it for very many texts by our client.

    python -m benchmarks.bulk [--texts 100000] [--rounds 5] [--adapter sentiment]

In turns, on the same server: bodies that were made before, posted by httpx with nothing read from
the answers; bert_lora.Client.embed; and `bert-lora embed` from a file of lines to .npy, its start
included. Client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import orjson

from benchmarks.load.arrivals import made_texts
from benchmarks.load.percentiles import machine
from benchmarks.processes.environments import ROOT
from benchmarks.processes.loaded import our_server
from bert_lora import Client
from bert_lora.splitting import pieces

AT_ONCE = 8


async def posted(url: str, adapter: str, bodies: list[bytes]) -> None:
    """Each body once, as many under way as the client has at most."""
    remaining = iter(bodies)
    headers = {"Accept": "application/octet-stream", "Content-Type": "application/json"}
    async with httpx2.AsyncClient(base_url=url, timeout=300, headers=headers) as client:

        async def post_some() -> None:
            for body in remaining:
                answer = await client.post(f"/embed?adapter={adapter}", content=body)
                answer.raise_for_status()

        await asyncio.gather(*(post_some() for _ in range(AT_ONCE)))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapter", default="sentiment")
    args = parser.parse_args()
    some = made_texts(0)
    texts = [f"{some[i % len(some)]} {i}" for i in range(args.texts // args.rounds)]
    bodies = [orjson.dumps({"inputs": piece.texts}) for piece in pieces(texts, 2048)]
    with tempfile.TemporaryDirectory() as folder, our_server(Path(folder) / "store") as server:
        url = str(server.base_url).rstrip("/")
        source, output = Path(folder) / "texts.txt", Path(folder) / "out.npy"
        source.write_text("\n".join(texts))
        command = [sys.executable, "-m", "bert_lora", "embed", str(source), "-o", str(output)]
        command += ["--adapter", args.adapter, "--url", url]
        with Client(url, adapter=args.adapter, at_once=AT_ONCE) as client:
            ways: dict[str, Callable[[], object]] = {
                "posted bodies": lambda: asyncio.run(posted(url, args.adapter, bodies)),
                "Client.embed": lambda: client.embed(texts),
                "bert-lora embed": lambda: subprocess.run(
                    command, cwd=ROOT, check=True, capture_output=True
                ),
            }
            client.embed(texts[:2000])  # warm
            rounds = [
                {name: seconds(way) for name, way in ways.items()} for _ in range(args.rounds)
            ]
    print(f"{machine()}; {args.rounds} rounds of {len(texts):,} texts each way")
    for name in ways:
        rates = [len(texts) / took[name] for took in rounds]
        ratios = [took["posted bodies"] / took[name] for took in rounds]
        print(
            f"{name:16} {statistics.median(rates):8,.0f} texts/s, "
            f"{statistics.median(ratios):.3f} of the posted bodies' rate "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"the largest child's memory, the server's among them: {peak / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
