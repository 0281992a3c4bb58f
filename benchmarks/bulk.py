"""How much of a server's own rate is left to who asks it for very many texts by our client.

    python -m benchmarks.bulk [--texts 100000] [--rounds 5] [--adapter sentiment] [--words 12]

In turns, on the same server: bodies that were made before, posted by httpx with nothing read from
the answers; bert_lora.Client.embed; and `bert-lora embed` from a file of lines to .npy, its start
included. Client and server share the machine's cores, so that the CPU seconds of the one are what
the other lacks: they tell more than the rates do where something else runs beside.
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
from dataclasses import dataclass
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
    """Each body once, as many under way as the client has at most; again where it is refused."""
    remaining = iter(bodies)
    headers = {"Accept": "application/octet-stream", "Content-Type": "application/json"}
    async with httpx2.AsyncClient(base_url=url, timeout=300, headers=headers) as client:

        async def post_some() -> None:
            for body in remaining:
                while (answer := await client.post(path, content=body)).status_code == 429:  # noqa: ASYNC110 - it says when
                    await asyncio.sleep(int(answer.headers["retry-after-ms"]) / 1000)
                answer.raise_for_status()

        path = f"/embed?adapter={adapter}"
        await asyncio.gather(*(post_some() for _ in range(AT_ONCE)))


@dataclass(frozen=True)
class Took:
    """Seconds of the clock; of CPU, the client's."""

    clock: float
    cpu: float


def took(work: Callable[[], object]) -> Took:
    began, cpu = time.perf_counter(), own_cpu_s()
    work()
    return Took(time.perf_counter() - began, own_cpu_s() - cpu)


def own_cpu_s() -> float:
    """This process's, and that of its children that have ended: not the server's."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapter", default="sentiment")
    parser.add_argument("--words", type=int, default=12)
    args = parser.parse_args()
    some = made_texts(0)
    texts = [
        " ".join(f"{some[i % len(some)]} {i}".split()[-args.words :])
        for i in range(args.texts // args.rounds)
    ]
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
            client.embed(texts[:1000])  # warm
            rounds = []
            for _ in range(args.rounds):
                rounds.append({name: took(way) for name, way in ways.items()})
                print(rounds[-1], file=sys.stderr, flush=True)
        memory_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{machine()}; {args.rounds} rounds of {len(texts):,} texts each way")
    for name in ways:
        rate = statistics.median(len(texts) / each[name].clock for each in rounds)
        ratio = statistics.median(each["posted bodies"].clock / each[name].clock for each in rounds)
        cpu = statistics.median(each[name].cpu / each[name].clock for each in rounds)
        per = statistics.median(each[name].cpu for each in rounds) / len(texts) * 100_000
        print(
            f"{name:16} {rate:8,.0f} texts/s, {ratio:.3f} of the posted bodies' rate; "
            f"client's CPU {per:.1f} s for 100,000 texts, {100 * cpu:.1f} % of a core"
        )
    print(f"bert-lora embed's memory: {memory_mib:,.0f} MiB")


if __name__ == "__main__":
    main()
