"""What Kubernetes' gateway API inference extension reads of a model server, by vLLM's names.

Its endpoint picker sends a request to a server that has few requests waiting and holds the
request's adapter. Behind a setting: they are another server's names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.catalog.registry import Registry
from app.engine.engine import Engine
from app.inference.runtime import Runtime
from app.inference.watched import running_and_waiting

MOST_NAMES = 200  # of a label: the picker reads 64 KiB at most


class Gateway(Collector):
    """Read anew for each scrape."""

    def __init__(self, runtime: Runtime) -> None:
        self._engine: Engine = runtime.engine
        self._registry: Registry = runtime.registry

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        running, waiting = running_and_waiting(self._engine)
        model = self._engine.encoder.files.id
        for name, what, count in (
            ("vllm:num_requests_running", "Requests that the model has begun.", running),
            ("vllm:num_requests_waiting", "Requests that wait for the model.", waiting),
        ):
            family = GaugeMetricFamily(name, what, labels=["model_name"])
            family.add_metric([model], count)
            yield family
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that run or are in memory, and that wait; the value is the time in seconds.",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        begun, waits = self._adapters()
        info.add_metric([str(self._engine.max_batch_tokens), waits, begun], time.time())
        yield info

    def _adapters(self) -> tuple[str, str]:
        """The names that run or whose versions are in memory, and those that wait, with commas."""
        begun: set[str] = set()
        waits: set[str] = set()
        for request, sequences in self._engine.requests.copy().items():
            digests = waits if request.started_at is None else begun
            digests.update(sequence.version.digest for sequence in sequences)
        running = self._names(begun)
        held = self._names(self._registry.residents.latest(MOST_NAMES))
        ours = [*running, *(name for name in held if name not in running)]
        return _listed(ours), _listed(self._names(waits))

    def _names(self, digests: Iterable[str]) -> list[str]:
        wanted, served = set(digests), self._registry.names.copy().values()
        return sorted(name.name for name in served if not name.versions.isdisjoint(wanted))


def _listed(names: list[str]) -> str:
    return ",".join(names[:MOST_NAMES])
