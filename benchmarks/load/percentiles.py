"""How a running server answers a load, in percentiles.

What is counted are the arrivals after the warm-up; see sending.py for how they are sent.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import typer

from benchmarks.load.arrivals import Load
from benchmarks.load.sending import Outcome, Progress, Run, send

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
PACKAGES = ("bert-lora-server", "aiohttp", "numpy")
TIMING = re.compile(r"([\w-]+)[^,]*?;\s*dur=([\d.]+)")
STEPS_A_SECOND = 10  # of the bar
WORTH_SAYING = 0.1  # of p99: more lag than that, and the latencies are not the server's alone


def bench(load: Load, *, as_json: bool) -> tuple[str, bool]:
    """(what to print, whether any request succeeded). Raises Unreachable."""
    with _bar(load) as tell:
        measured = report(send(load, tell))
    text = json.dumps(measured, ensure_ascii=False) if as_json else table(measured)
    return text, measured["succeeded"] > 0


def report(run: Run) -> dict[str, Any]:
    """Everything measured; times in ms, rates per second.

    The rates count the 2xx that came while the load was on, whenever they were due: what the server
    gives steadily, also where it is given more than it can.
    """
    load = run.load
    counted = [o for o in run.outcomes if o.due_s >= load.warmup_s]
    ok = [o for o in counted if o.ok]
    end_s = load.warmup_s + load.seconds
    per_s = sum(o.ok and load.warmup_s <= o.done_s < end_s for o in run.outcomes) / load.seconds
    retried = [o for o in counted if o.retried]
    return {
        "endpoint": load.endpoint,
        "api": load.api,
        "rate": load.rate,
        "seconds": load.seconds,
        "warmup_s": load.warmup_s,
        "inputs": load.inputs,
        "seed": load.seed,
        "timeout_s": load.timeout_s,
        "arrivals": len(counted),
        "succeeded": len(ok),
        "answers": dict(sorted(Counter(o.status for o in counted).items())),
        "said": run.said,
        "requests_per_s": round(per_s, 3),
        "texts_per_s": round(per_s * load.inputs, 3),
        "retries": _retries(retried) if load.retry else None,
        "latency_ms": spread(o.done_s - o.due_s for o in ok),
        "server_timing_ms": _timings(ok),
        "adapters": _adapters(ok) if len(load.adapters) > 1 else {},
        "generator_lag_ms": spread(o.sent_s - o.due_s for o in counted),
        "machine": machine(),
    }


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Percentiles in ms, linear between ranks; of nothing: none."""
    values = np.fromiter(seconds, float) * 1000
    if not len(values):
        return {}
    found = np.percentile(values, list(PERCENTILES.values())).round(3).tolist()
    return dict(zip(PERCENTILES, found, strict=True))


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    rows = {"latency": found["latency_ms"]}
    rows |= {f"  {name}": row for name, row in found["server_timing_ms"].items()}
    rows |= {f"adapter {name}": row for name, row in found["adapters"].items()}
    rows["generator lag"] = found["generator_lag_ms"]
    width = max(len(name) for name in rows)
    answers = ", ".join(f"{status}: {count:,}" for status, count in found["answers"].items())
    lines = [
        f"arrivals  {found['arrivals']:,} in {found['seconds']:g} s, asked for {found['rate']:g} a second, "
        f"texts in each: {found['inputs']}, POST {found['endpoint']}",
        f"answers   {answers or 'none'}",
        *(f"          the first {status}: {text}" for status, text in found["said"].items()),
        f"goodput   {found['requests_per_s']:.1f} requests/s, {found['texts_per_s']:.1f} texts/s",
        *_retry_line(found["retries"]),
        f"{'ms':{width}}" + "".join(f"{name:>10}" for name in PERCENTILES),
        *(
            f"{name:{width}}" + "".join(f"{value:10.2f}" for value in row.values())
            for name, row in rows.items()
            if row
        ),
        *_lag_line(found),
    ]
    return "\n".join(lines)


def _retry_line(retries: dict[str, Any] | None) -> list[str]:
    if retries is None:
        return []
    share = "" if retries["share"] is None else f" ({100 * retries['share']:.0f} %)"
    return [f"retries   {retries['retried']:,}, {retries['succeeded']:,} of them answered{share}"]


def _lag_line(found: dict[str, Any]) -> list[str]:
    latency, lag = found["latency_ms"], found["generator_lag_ms"]
    if not latency or lag["p99"] <= WORTH_SAYING * latency["p99"]:
        return []
    return [
        f"over {100 * WORTH_SAYING:.0f} % of p99 is the generator's own lag, not the server's: "
        "lower --rate, or run it on a machine of its own"
    ]


def _retries(retried: list[Outcome]) -> dict[str, Any]:
    succeeded = sum(o.ok for o in retried)
    share = round(succeeded / len(retried), 4) if retried else None
    return {"retried": len(retried), "succeeded": succeeded, "share": share}


def _timings(ok: list[Outcome]) -> dict[str, dict[str, float]]:
    """By the part's name in Server-Timing, in the order the server names them."""
    parts: dict[str, list[float]] = {}
    for outcome in ok:
        for name, ms in TIMING.findall(outcome.timing):
            parts.setdefault(name, []).append(float(ms) / 1000)
    return {name: spread(values) for name, values in parts.items()}


def _adapters(ok: list[Outcome]) -> dict[str, dict[str, float]]:
    names = sorted({o.adapter for o in ok})
    return {name: spread(o.done_s - o.due_s for o in ok if o.adapter == name) for name in names}


def machine() -> dict[str, Any]:
    """The generator's, which need not be the server's."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


@contextmanager
def _bar(load: Load) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr, by time; nothing where stderr is no terminal."""
    total = max(1, round((load.warmup_s + load.seconds) * STEPS_A_SECOND))
    hidden = not sys.stderr.isatty()
    with typer.progressbar(length=total, width=24, hidden=hidden, file=sys.stderr) as bar:

        def tell(at: Progress) -> None:
            bar.label = f"{at.done:,} done, {at.open:,} open, {at.failed:,} failed"
            steps = min(total, round(at.at_s * STEPS_A_SECOND)) - bar.pos
            if steps:
                bar.update(steps)
            else:  # what comes in late
                bar.render_progress()

        yield tell
