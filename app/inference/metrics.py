"""What /metrics counts, in a registry of its own, so that two apps in one process don't mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from app.engine.forward import Forward
from app.inference.busiest import Busiest

NO_ADAPTERS = ("", "base")  # labels that are always shown
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DISTANCES = (1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 3)
BATCH_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """One server's counters. A request through several adapters counts once for each that is
    named.
    """

    def __init__(self, most_adapters: int = 200) -> None:
        """most_adapters: the busiest ones have labels of their own."""
        self.registry = at = CollectorRegistry()
        self.busiest = Busiest(most_adapters, lambda _: True, self._drop)
        ProcessCollector(registry=at)
        by = ["route", "adapter"]
        self.requests = Counter(
            "bert_lora_requests", "Requests answered.", [*by, "status"], registry=at
        )
        what = "From the request's first byte to the answer's last."
        self.latency = Histogram(
            "bert_lora_request_seconds", what, by, registry=at, buckets=LATENCY_S
        )
        what = "Tokens run, special ones too."
        self.tokens = Counter("bert_lora_tokens", what, ["adapter"], registry=at)
        what = "Tokens of a forward pass."
        self.batch_tokens = Histogram(
            "bert_lora_batch_tokens", what, registry=at, buckets=BATCH_TOKENS
        )
        self.batch_sequences = Counter("bert_lora_sequences", "Sequences run.", registry=at)
        by, what = ["adapter", "arm"], "Requests for an adapter on trial, by who answered."
        self.trial_requests = Counter(
            "bert_lora_trial_requests", what, [*by, "status"], registry=at
        )
        self.trial_latency = Histogram(
            "bert_lora_trial_seconds", "Their latency.", by, registry=at, buckets=LATENCY_S
        )
        what = "Inputs run by a shadow too: same, different, failed; and requests skipped."
        self.shadow = Counter("bert_lora_shadow", what, ["adapter", "result"], registry=at)
        what = "Relative L2 distance of a shadow's rows."
        self.shadow_distance = Histogram(
            "bert_lora_shadow_distance", what, ["adapter"], registry=at, buckets=DISTANCES
        )

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, what, registry=self.registry).set_function(read)

    def label(self, name: str) -> str:
        """What an adapter's series are called: its name, or _others."""
        return name if name in NO_ADAPTERS else self.busiest.label(name)

    def request(self, route: str, adapters: Sequence[str], status: int, seconds: float) -> None:
        """One request is over. adapters: those that it asked for; none: [""]."""
        for label in dict.fromkeys(map(self._count, adapters)):
            self.requests.labels(route, label, str(status)).inc()
            self.latency.labels(route, label).observe(seconds)

    def trial(self, adapter: str, arm: str, status: int, seconds: float) -> None:
        """One request for an adapter on trial is over."""
        label = self.label(adapter)
        self.trial_requests.labels(label, arm, str(status)).inc()
        self.trial_latency.labels(label, arm).observe(seconds)

    def forward(self, forward: Forward) -> None:
        """One forward pass is over."""
        self.batch_tokens.observe(forward.tokens)
        self.batch_sequences.inc(len(forward.batch))

    def text(self) -> bytes:
        """The Prometheus exposition format."""
        return generate_latest(self.registry)

    def _count(self, name: str) -> str:
        return name if name in NO_ADAPTERS else self.busiest.count(name)

    def _drop(self, name: str) -> None:
        """The adapter's series are shown no more."""
        for metric in (
            self.requests,
            self.latency,
            self.tokens,
            self.trial_requests,
            self.trial_latency,
            self.shadow,
            self.shadow_distance,
        ):
            metric.remove_by_labels({"adapter": name})
