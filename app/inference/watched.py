"""What /metrics looks at when it is scraped: the queue, the adapters, memory, what runs here.

Read from a thread beside the event loop: counts and copies, and the store's folder. Knows the
runtime; counts nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from app.catalog.store import StoreUnavailable
from app.engine.engine import Engine
from app.inference.build import own_version
from app.inference.runtime import Runtime
from app.model import machine

FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


@dataclass(frozen=True)
class Row:
    """One number. what: its help. read: called at each scrape; None: not known now, not shown."""

    kind: Literal["gauge", "counter"]
    name: str
    what: str
    read: Callable[[], float | None]


class Watched(Collector):
    """Rows and infos, read anew for each scrape."""

    def __init__(self, rows: Iterable[Row], infos: Iterable[InfoMetricFamily] = ()) -> None:
        self._rows, self._infos = list(rows), list(infos)

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        yield from self._infos
        for row in self._rows:
            value = row.read()
            if value is not None:
                yield FAMILIES[row.kind](row.name, row.what, value=value)


def watch(runtime: Runtime) -> None:
    """Show the runtime in its own metrics."""
    metrics, registry = runtime.metrics, runtime.registry
    metrics.busiest.known = registry.names.__contains__
    registry.on_remove = metrics.busiest.forget
    rows = [*_queue(runtime.engine), *_adapters(runtime), *_memory(runtime)]
    metrics.registry.register(Watched(rows, _infos(runtime.engine)))


def running_and_waiting(engine: Engine) -> tuple[int, int]:
    """How many requests the model has begun, and how many wait for it."""
    requests = engine.requests.copy()
    running = sum(request.started_at is not None for request in requests)
    return running, len(requests) - running


def _queue(engine: Engine) -> list[Row]:
    admission, p = engine.admission, "bert_lora_"
    return [
        Row("gauge", p + "queue_tokens", "Tokens waiting.", lambda: admission.tokens),
        Row(
            "gauge",
            p + "queue_limit_tokens",
            "Tokens that may wait now; above: 429.",
            lambda: admission.max_tokens,
        ),
        Row(
            "gauge",
            p + "drain_tokens_per_second",
            "What the model runs in a second, as measured while it runs.",
            lambda: admission.tokens_per_s,
        ),
        Row(
            "gauge",
            p + "batch_limit_tokens",
            "Tokens of one forward pass at most; less after the device was short of memory.",
            lambda: engine.max_batch_tokens,
        ),
        Row(
            "gauge",
            p + "running_requests",
            "Requests that the model has begun.",
            lambda: running_and_waiting(engine)[0],
        ),
        Row(
            "gauge",
            p + "waiting_requests",
            "Requests that wait for the model.",
            lambda: running_and_waiting(engine)[1],
        ),
        Row(
            "gauge",
            p + "slow_paths",
            "Parts that go a slower way on this machine; /info says why.",
            lambda: len(engine.encoder.slow_paths),
        ),
    ]


def _adapters(runtime: Runtime) -> list[Row]:
    registry, store, p = runtime.registry, runtime.fetcher.store, "bert_lora_"
    residents = registry.residents
    found, missed = "Requests whose adapter was in memory.", "Requests that had to load theirs."
    broken = "Stored names and folders that cannot be served; /readyz says why."
    aside = "Damaged versions in the store's damaged/."
    reached = "Whether the store answers; what is known is served either way."
    tombstones = Row(
        "gauge",
        p + "tombstones",
        "Deleted names that the store remembers.",
        lambda: _where_it_can_be_read(store.tombstones),
    )
    names = runtime.names
    return [
        Row("gauge", p + "store_up", reached, lambda: int(names.unreachable is None)),
        Row("gauge", p + "adapters", "Adapters served.", lambda: len(registry.names)),
        Row("gauge", p + "broken_adapters", broken, lambda: len(registry.not_served)),
        Row("gauge", p + "merged_adapters", "With a merged copy.", lambda: len(registry.merged)),
        Row("gauge", p + "resident_adapters", "Versions in memory.", lambda: len(residents)),
        Row("counter", p + "adapter_hits", found, lambda: residents.hits),
        Row("counter", p + "adapter_misses", missed, lambda: residents.misses),
        Row(
            "counter",
            p + "adapter_evictions",
            "Versions that fell out of memory for want of room.",
            lambda: residents.evictions,
        ),
        Row(
            "gauge",
            p + "set_aside_versions",
            aside,
            lambda: len(store.set_aside_versions()),
        ),
        *([] if store.shared else [tombstones]),  # a bucket would list all names each time
    ]


def _where_it_can_be_read(read: Callable[[], int]) -> int | None:
    try:
        return read()
    except StoreUnavailable:
        return None


def _memory(runtime: Runtime) -> list[Row]:
    registry, p, device = runtime.registry, "bert_lora_", runtime.engine.encoder.device
    residents, limit = registry.residents, machine.memory_limit()
    may_have = "Memory that this process may have: its container's, or the machine's."
    rows = [
        Row("gauge", p + "resident_bytes", "Of versions in memory.", lambda: residents.bytes),
        Row(
            "gauge",
            p + "resident_limit_bytes",
            "Memory that they may take; above, versions fall out.",
            lambda: residents.budget_bytes,
        ),
        Row("gauge", p + "merged_bytes", "Of merged copies.", lambda: registry.merged_bytes),
        Row("gauge", p + "memory_limit_bytes", may_have, lambda: limit),
    ]
    if device.type != "cuda":
        return rows
    cuda, size = torch.cuda, torch.cuda.get_device_properties(device).total_memory
    return [
        *rows,
        Row(
            "gauge",
            p + "gpu_allocated_bytes",
            "GPU memory of tensors.",
            lambda: cuda.memory_allocated(device),
        ),
        Row(
            "gauge",
            p + "gpu_reserved_bytes",
            "GPU memory that PyTorch holds, with what it keeps for later.",
            lambda: cuda.memory_reserved(device),
        ),
        Row("gauge", p + "gpu_limit_bytes", "The GPU's memory.", lambda: size),
    ]


def _infos(engine: Engine) -> list[InfoMetricFamily]:
    encoder = engine.encoder
    build = {"version": own_version(), "torch": str(torch.__version__)}
    base = {
        "id": encoder.files.id,
        "digest": encoder.digest,
        "type": encoder.base.model_type,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "device": str(encoder.device),
    }
    return [
        InfoMetricFamily("bert_lora_build", "What runs here.", build),
        InfoMetricFamily("bert_lora_base", "The base that it serves.", base),
    ]
