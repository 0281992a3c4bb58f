"""What /metrics counts, in a registry of its own, so that two apps in one process don't mix.

What is looked at when it is scraped is watched.py's; docs/metrics.md lists all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from app.engine.forward import Forward
from app.inference.batch_metrics import ForwardMetrics, LoadMetrics
from app.inference.busiest import Busiest
from app.inference.live import Live

NO_ADAPTERS = ("", "base")  # labels that are always shown
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PART_S = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
DISTANCES = (1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 3)


class Metrics:
    """One server's counters. A request through several adapters counts once for each that is
    named. live: the last minute, which GET /live shows.
    """

    def __init__(self, most_adapters: int = 200) -> None:
        """most_adapters: the busiest ones have labels of their own."""
        # For each counter a second series, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = at = CollectorRegistry()
        self.busiest = Busiest(most_adapters, lambda _: True, self._drop)
        ProcessCollector(registry=at)
        self.forwards, self.loads = ForwardMetrics(at), LoadMetrics(at)
        self.live = Live()
        by = ["route", "adapter"]
        what = "Requests answered."
        self.requests = Counter("bert_lora_requests", what, [*by, "status"], registry=at)
        what = "Requests refused, by the error's type; from 0 for what a route says it may refuse."
        self.refusals = Counter("bert_lora_refusals", what, ["route", "reason"], registry=at)
        what = "From the request's first byte to the answer's last."
        self.latency = Histogram(
            "bert_lora_request_seconds", what, by, registry=at, buckets=LATENCY_S
        )
        what = "Of an answered request, in the tokenizer."
        self.tokenize = Histogram("bert_lora_tokenize_seconds", what, registry=at, buckets=PART_S)
        what = "Of an answered request, waiting for the model."
        self.queue = Histogram("bert_lora_queue_seconds", what, registry=at, buckets=PART_S)
        what = "Tokens run, special ones too."
        self.tokens = Counter("bert_lora_tokens", what, ["adapter"], registry=at)
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

    def label(self, name: str) -> str:
        """What an adapter's series are called: its name, or _others."""
        return name if name in NO_ADAPTERS else self.busiest.label(name)

    def request(
        self,
        route: str,
        adapters: Sequence[str],
        status: int,
        seconds: float,
        reason: str | None = None,
    ) -> None:
        """One request is over. adapters: those that it asked for; none: [""]. reason: of its
        refusal, if it was refused.
        """
        for label in dict.fromkeys(map(self._count, adapters)):
            self.requests.labels(route, label, str(status)).inc()
            self.latency.labels(route, label).observe(seconds)
        if reason is not None:
            self.refusals.labels(route, reason).inc()

    def forward(self, forward: Forward) -> None:
        """One forward pass is over."""
        self.forwards.observe(forward)
        self.live.ran(forward)

    def ran(self, tokenize_s: float, queue_s: float) -> None:
        """A request has come through the model."""
        self.tokenize.observe(tokenize_s)
        self.queue.observe(queue_s)

    def trial(self, adapter: str, arm: str, status: int, seconds: float) -> None:
        """One request for an adapter on trial is over."""
        label = self.label(adapter)
        self.trial_requests.labels(label, arm, str(status)).inc()
        self.trial_latency.labels(label, arm).observe(seconds)

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
