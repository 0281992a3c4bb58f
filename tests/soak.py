"""Minutes of everything at once on a real server, with every answer compared with PEFT's own.

    python -m tests.soak [--seconds 600] [--kills 2]

Adapters come, go, are merged, rolled back, tried as canaries; clients ask in every way, go away in
the midst, come in floods, send rubbish; the forward raises when it is told to; in the first half
the server is killed (SIGKILL) and started again. Prints what was asked and answered, memory,
threads and descriptors over time, and exits with 1 where an answer was wrong, an acknowledged
change was lost, a 500 came that was not asked for, or something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from tests import faulty
from tests.oracles import make_adapter, peft_embeddings, plain_embeddings, sentences
from tests.process import Process, start
from tests.tiny import save_tiny_base

CONTENTS, NAMES, ADMINS, READERS = 8, 12, 3, 8
TOLERANCE = 1e-5
FLOOD = 300
TARGETS = (["query", "value"], ["query", "key", "value", "dense"])


@dataclass
class Change:
    """What a name was told to point at (None: deleted), from when until when."""

    version: str | None
    begun: float
    ended: float = float("inf")


@dataclass
class Soak:
    """texts, wanted: wanted[version or "base"][text] is PEFT's vector. changes: by name, in
    order.
    """

    folders: list[Path]
    texts: list[str]
    wanted: dict[str, dict[str, Any]]
    versions: list[str]
    process: Process
    end: float
    draw: random.Random
    changes: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    trials: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    held: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    furthest: float = 0.0
    up: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, name: str, noted: Change, *, done: bool | None) -> None:
        """What came of a change; None: nobody knows, and either may answer until the next one."""
        if done is None:
            return
        if done:
            for unknown in self.changes[name]:
                unknown.ended = min(unknown.ended, time.monotonic())
        else:
            self.changes[name].remove(noted)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    def may_answer(self, name: str, begun: float) -> set[str | None]:
        """The versions that a request begun then, and answered now, may have met."""
        before = [c for c in self.changes[name] if c.ended < begun]
        during = [c for c in self.changes[name] if c.ended >= begun]
        last = [before[-1].version] if before else [None]
        return {*last, *(c.version for c in during), *self.trials[name]}


async def ask(soak: Soak, http: aiohttp.ClientSession) -> None:
    """One request of some kind, its answer compared."""
    draw = soak.draw
    names = [f"n{draw.randrange(NAMES)}" for _ in range(draw.randint(1, 3))]
    texts = draw.choices(soak.texts, k=draw.randint(1, 6))
    kind = draw.choices(["one", "mixed", "fan", "gone", "crash", "late"], [40, 25, 15, 10, 5, 5])[0]
    begun, headers = time.monotonic(), {}
    body: dict[str, Any] = {"inputs": texts}
    lines = [[names[0]] * len(texts)]
    query = [("adapter", names[0])]
    if kind == "mixed":
        lines = [[draw.choice(["base", *names]) for _ in texts]]
        body["adapters"] = [None if n == "base" else n for n in lines[0]]
        query = []
    elif kind == "fan":
        names = list(dict.fromkeys([*names, "base"]))
        lines = [[n] * len(texts) for n in names]
        query = [("adapter", n) for n in names]
    elif kind == "crash":
        body, query = {"inputs": draw.choice([faulty.CRASH, faulty.NO_MEMORY])}, []
    elif kind == "late":
        headers["X-Request-Timeout"] = "0.002"
    try:
        if kind == "gone":
            async with asyncio.timeout(draw.random() * 0.01):
                async with http.post("/embed", params=query, json=body) as answer:
                    await answer.read()
            return
        async with http.post("/embed", params=query, json=body, headers=headers) as answer:
            found = await answer.json()
            stamps = answer.headers.get("X-Adapter", "")
    except (TimeoutError, aiohttp.ClientError):
        soak.counts[f"{kind} cut off"] += 1
        return
    error = found.get("error_type", "") if isinstance(found, dict) else ""
    soak.counts[f"{kind} {answer.status} {error}".strip()] += 1
    if answer.status == 200:
        found = found if kind == "fan" else {"": found}
        rows = [row for line in found.values() for row in line]
        asked = [(n, t) for line in lines for n, t in zip(line, texts, strict=True)]
        _compare(soak, asked, rows, dict(s.split("@") for s in stamps.split(", ")), begun)
    elif answer.status == 404 and all(
        None not in soak.may_answer(n, begun) for n in names if n != "base"
    ):
        soak.wrong.append(f"404 for {names}, which were there")
    elif answer.status >= 500 and not (kind == "crash" or (kind, answer.status) == ("late", 504)):
        soak.wrong.append(f"{kind}: {answer.status} {found}")


def _compare(
    soak: Soak, asked: list[tuple[str, str]], rows: Any, stamps: dict[str, str], begun: float
) -> None:
    if len(rows) != len(asked):
        soak.wrong.append(f"{len(rows)} rows for {len(asked)} inputs")
        return
    for name, version in stamps.items():
        if name != "base" and version not in soak.may_answer(name, begun):
            told = [
                f"{c.version and c.version[:6]} {c.begun:.3f}-{c.ended:.3f}"
                for c in soak.changes[name]
            ]
            soak.wrong.append(
                f"{name} was answered by {version[:12]}, asked {begun:.3f} and answered "
                f"{time.monotonic():.3f}, and was told {told[-6:]}"
            )
    for (name, text), row in zip(asked, rows, strict=True):
        wanted = soak.wanted["base" if name == "base" else stamps[name]][text]
        apart = float(np.abs(np.asarray(row, np.float32) - wanted).max())
        soak.furthest = max(soak.furthest, apart)
        soak.counts["rows compared"] += 1
        if not apart <= TOLERANCE:
            soak.wrong.append(f"{name}@{stamps.get(name, '')[:12]} {text[:20]!r}: {apart}")


async def change(soak: Soak, http: aiohttp.ClientSession, names: list[str]) -> None:
    """One change of a name that nobody else changes; what is acknowledged has to hold from then
    on.
    """
    name, draw = soak.draw.choice(names), soak.draw
    kind = draw.choices(
        ["put", "delete", "rollback", "merge", "unmerge", "canary", "shadow", "end", "rubbish"],
        [40, 10, 10, 10, 8, 8, 6, 10, 8],
    )[0]
    path = f"/adapters/{name}"
    if kind in ("put", "delete"):
        status = await _put_or_delete(soak, http, name, kind == "put")
    elif kind == "rollback":
        status = await _rollback(soak, http, name)
    elif kind in ("canary", "shadow", "end"):
        status = await _trial(soak, http, name, kind)
    elif kind == "rubbish":
        rubbish = draw.randbytes(draw.choice([0, 7, 100, 5000]))
        status, _ = await _send(http.put(path, data=rubbish))
    else:
        status, _ = await _send(http.post(f"{path}/{kind}"))
    soak.counts[f"admin {kind} {status}"] += 1
    if status is not None and status >= 500 and status != 507:
        soak.wrong.append(f"{kind} of {name}: {status}")


async def _put_or_delete(
    soak: Soak, http: aiohttp.ClientSession, name: str, puts: bool
) -> int | None:
    number = soak.draw.randrange(CONTENTS)
    version = soak.versions[number] if puts else None
    noted = Change(version, time.monotonic())
    soak.changes[name].append(noted)
    path = f"/adapters/{name}"
    request = http.put(path, data=_form(soak.folders[number])) if puts else http.delete(path)
    status, _ = await _send(request)
    soak.settle(name, noted, done=None if status is None else status in (200, 201, 204))
    if status in (200, 201, 204):
        soak.held[name] = soak.held[name] | {version} if version else set()
    return status


async def _rollback(soak: Soak, http: aiohttp.ClientSession, name: str) -> int | None:
    version = soak.draw.choice(sorted(soak.held[name]) or [soak.versions[0]])
    noted = Change(version, time.monotonic())
    soak.changes[name].append(noted)
    status, _ = await _send(http.post(f"/adapters/{name}/rollback", json={"version": version}))
    soak.settle(name, noted, done=None if status is None else status == 200)
    return status


async def _trial(soak: Soak, http: aiohttp.ClientSession, name: str, kind: str) -> int | None:
    """On some names only: whatever was a canary there may answer from then on."""
    if int(name[1:]) % 4 or not soak.held[name]:
        return None
    path = f"/adapters/{name}"
    if kind != "end":
        version = soak.draw.choice(sorted(soak.held[name]))
        soak.trials[name] |= {version} if kind == "canary" else set()
        body = {"version": version, "percent": soak.draw.choice([5, 50, 100])}
        return (await _send(http.post(f"{path}/{kind}", json=body)))[0]
    begun, how = time.monotonic(), soak.draw.choice(["promote", "abort"])
    versions = sorted(soak.trials[name] | soak.held[name]) if how == "promote" else []
    candidates = [Change(version, begun) for version in versions]
    soak.changes[name] += candidates
    status, answer = await _send(http.post(f"{path}/{how}"))
    for candidate in candidates if status is not None else []:
        soak.changes[name].remove(candidate)
    if status == 200:
        soak.changes[name].append(Change(answer["version"], begun, time.monotonic()))
    return status


async def _send(request: Any) -> tuple[int | None, Any]:
    """The status and the answer; None where the server was gone before it answered."""
    try:
        async with request as answer:
            body = await answer.read()
            return answer.status, json.loads(body) if body else None
    except aiohttp.ClientError:
        return None, None


def _form(folder: Path) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        form.add_field(name, (folder / name).read_bytes(), filename=name)
    return form


async def flood(soak: Soak, http: aiohttp.ClientSession) -> None:
    """Many large requests at once: each is answered or told to come again."""
    body = {"inputs": [soak.draw.choice(soak.texts) for _ in range(60)]}

    async def one() -> None:
        status, _ = await _send(http.post("/embed", json=body))
        soak.counts[f"flood {status}"] += 1
        if status not in (200, 429, None):
            soak.wrong.append(f"flood: {status}")

    await asyncio.gather(*(one() for _ in range(FLOOD)))


async def kill(soak: Soak, folder: Path, model: Path) -> None:
    """SIGKILL, a start, and a look whether every name is as the last change left it."""
    soak.up.clear()
    began = time.monotonic()
    await asyncio.to_thread(soak.process.kill)
    port = int(soak.process.url.rsplit(":", 1)[1])
    soak.process = await asyncio.to_thread(
        start, folder, module="tests.faulty", model=str(model), port=port
    )
    soak.counts["kills"] += 1
    print(f"killed, and served again after {time.monotonic() - began:.1f} s", flush=True)
    found = {a["name"]: a for a in soak.process.client.get("/adapters").json()}
    for name, changes in soak.changes.items():
        version = found[name]["version"] if name in found else None
        acknowledged = [c for c in changes if c.ended < began]
        possible = {c.version for c in changes if c.ended >= began}
        possible.add(acknowledged[-1].version if acknowledged else None)
        if version not in possible:
            soak.wrong.append(f"after a kill {name} is at {version}, not one of {possible}")
        changes[:] = [Change(version, began, time.monotonic())]
    soak.up.set()


def usage(pid: int) -> dict[str, int]:
    """rss in MiB, threads, descriptors."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "rss": int(status["VmRSS"].split()[0]) >> 10,
        "threads": int(status["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
    }


async def _again_and_again(soak: Soak, what: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while not soak.over:
        await soak.up.wait()
        await what()
        pause = soak.draw.expovariate(1 / pause_s)
        await asyncio.sleep(min(pause, max(0.0, soak.end - time.monotonic())))


async def run(soak: Soak, folder: Path, model: Path, seconds: float, kills_asked: int) -> bool:
    """All of it, for so long, with so many kills in its first half; whether nothing was wrong."""
    started = time.monotonic()
    samples: list[dict[str, int]] = []
    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(soak.process.url, connector=connector, timeout=limit) as http:
        soak.up.set()
        tasks = [
            *(_again_and_again(soak, lambda: ask(soak, http), 0.02) for _ in range(READERS)),
            *(
                _again_and_again(
                    soak,
                    lambda i=i: change(soak, http, [f"n{n}" for n in range(i, NAMES, ADMINS)]),  # type: ignore[misc]
                    0.3,
                )
                for i in range(ADMINS)
            ),
            _again_and_again(soak, lambda: flood(soak, http), seconds / 10),
        ]
        works = [asyncio.create_task(task) for task in tasks]
        kills = [0.4 * (i + 1) / kills_asked for i in range(kills_asked)] if seconds >= 60 else []
        while not soak.over:
            await asyncio.sleep(1.0 if len(kills) > 2 else max(1.0, seconds / 60))
            if time.monotonic() - started > seconds / 2:
                kills = []  # what it grows to is seen in the second half
            if kills and time.monotonic() - started > kills[0] * seconds:
                kills.pop(0)
                await kill(soak, folder, model)
                await flood(soak, http)  # what it grows to is known from here on
            if not kills:
                samples.append(usage(soak.process.child.pid))
            failed = [w for w in works if w.done() and w.exception()]
            for work in failed:
                work.result()
            if len(samples) % 10 == 1:
                rate = sum(soak.counts.values()) / (time.monotonic() - started)
                print(f"{time.monotonic() - started:5.0f} s {samples[-1]} {rate:.0f}/s", flush=True)
        await asyncio.gather(*works)
    await asyncio.sleep(6)  # idle connections are closed
    return _judged(soak, samples, usage(soak.process.child.pid))


def _judged(soak: Soak, samples: list[dict[str, int]], last: dict[str, int]) -> bool:
    quarter = max(1, len(samples) // 4)
    early = {k: max(s[k] for s in samples[quarter : 2 * quarter]) for k in last}
    late = {k: max(s[k] for s in samples[-quarter:]) for k in last}
    for what, count in sorted(soak.counts.items()):
        print(f"{count:8} {what}")
    print(f"largest deviation {soak.furthest:.1e}; wrong: {len(soak.wrong)}")
    print(f"second quarter {early}, last quarter {late}, after draining {last}")
    for line in soak.wrong[:20]:
        print("WRONG", line)
    grew = last["fds"] > early["fds"]
    if len(samples) >= 40:  # before, caches fill and pools start their threads
        grew = grew or late["rss"] > 1.1 * early["rss"] or last["threads"] > early["threads"] + 2
    if grew:
        print("GREW")
    waiting = soak.process.client.get("/metrics").text
    empty = "bert_lora_queue_tokens 0.0" in waiting
    code = soak.process.end()
    print(f"queue empty: {empty}; exit code {code}")
    return not soak.wrong and not grew and empty and code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = save_tiny_base("bert", folder / "tiny-bert")
        texts = [" ".join(text.split()[:12]) for text in sentences(40)]
        folders = [
            make_adapter(
                model, folder / f"a{i}", i, r=2 + i, target_modules=TARGETS[i % 2], scale=4
            )
            for i in range(CONTENTS)
        ]
        process = start(folder, module="tests.faulty", model=str(model))
        wanted = {"base": dict(zip(texts, plain_embeddings(model, texts).numpy(), strict=True))}
        versions = []
        for i, adapter in enumerate(folders):
            files = {n: (adapter / n).read_bytes() for n in os.listdir(adapter) if "adapter" in n}  # noqa: PTH208
            answer = process.client.put(f"/adapters/dry{i}?dry_run=true", files=files).json()
            versions.append(answer["version"])
            vectors = peft_embeddings(model, adapter, texts).numpy()
            wanted[versions[-1]] = dict(zip(texts, vectors, strict=True))
        end = time.monotonic() + args.seconds
        draw = random.Random(args.seed)
        soak = Soak(folders, texts, wanted, versions, process, end, draw)
        well = asyncio.run(run(soak, folder, model, args.seconds, args.kills))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
