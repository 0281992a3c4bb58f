"""What /metrics counts of forward passes and of adapters' loads: beside the requests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.adapters.refusals import AdapterRejected
from app.catalog.golden import CertificateFailed
from app.engine.forward import Forward

BATCH_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
BATCH_ADAPTERS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
FILL = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
FORWARD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
LOAD_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LOAD_FAILURES = ("certificate", "rejected", "other")


class ForwardMetrics:
    """The batches that the model has run. Told from the model's threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        at = registry
        what = "From a forward pass's begin to its end."
        self._seconds = Histogram("bert_lora_forward_seconds", what, registry=at, buckets=FORWARD_S)
        what = "Of those seconds, the adapters' low-rank updates on the CPU."
        self._update_s = Counter("bert_lora_update_seconds", what, registry=at)
        what = "Tokens of a forward pass."
        self._tokens = Histogram("bert_lora_batch_tokens", what, registry=at, buckets=BATCH_TOKENS)
        what = "Tokens of a forward pass, as a share of what a batch may have."
        self._fill = Histogram("bert_lora_batch_fill_ratio", what, registry=at, buckets=FILL)
        what = "Adapters that took part in a forward pass, the base aside."
        self._adapters = Histogram(
            "bert_lora_batch_adapters", what, registry=at, buckets=BATCH_ADAPTERS
        )
        self._sequences = Counter("bert_lora_sequences", "Sequences run.", registry=at)
        what = "Tokens of padding that batches would have had, were they not packed."
        self._padding = Counter("bert_lora_padding_avoided_tokens", what, registry=at)

    def observe(self, forward: Forward) -> None:
        """One forward pass is over."""
        tokens = forward.tokens
        self._seconds.observe(forward.seconds)
        self._update_s.inc(forward.update_s)
        self._tokens.observe(tokens)
        self._fill.observe(tokens / forward.budget)
        self._adapters.observe(forward.adapters)
        self._sequences.inc(len(forward.batch))
        self._padding.inc(forward.padding)


class LoadMetrics:
    """Adapters on their way into memory: from an upload, a folder, or the store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        what = "Reading, accounting and measuring a version that then was ready to run."
        self._seconds = Histogram(
            "bert_lora_adapter_load_seconds", what, registry=registry, buckets=LOAD_S
        )
        what = "Versions that could not be loaded, by why."
        self._failures = Counter(
            "bert_lora_adapter_load_failures", what, ["reason"], registry=registry
        )
        for reason in LOAD_FAILURES:
            self._failures.labels(reason)

    def observe(self, seconds: float, error: Exception | None) -> None:
        """A version has been loaded, or could not be."""
        if error is None:
            self._seconds.observe(seconds)
        elif isinstance(error, CertificateFailed):
            self._failures.labels("certificate").inc()
        elif isinstance(error, AdapterRejected):
            self._failures.labels("rejected").inc()
        else:
            self._failures.labels("other").inc()
