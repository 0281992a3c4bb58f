"""OpenTelemetry's spans: one a request with its steps, one a batch, linked to each other.

Where they go is OpenTelemetry's own to read: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER. Importing this needs the extra `otel`. Knows no HTTP and no texts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.engine.engine import Engine
from app.engine.forward import Forward
from app.inference.caller import Trace
from app.model.sequence import Sequence

NAME = "bert-lora-server"
MOST_NAMED = 32  # adapters of one request; the rest are a count in its own answer
FLUSH_MS = 2000  # for what is not sent yet, at the end
PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """One server's. A request is sampled as its traceparent says; a batch if any request in it is.

    Its spans are sent by a thread of OpenTelemetry's own.
    """

    def __init__(self) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._requests, self._batches = (
            TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
            for sampler in (None, ALWAYS_ON)  # None: as OTEL_TRACES_SAMPLER says
        )
        for provider in (self._requests, self._batches):
            provider.add_span_processor(self._processor)
        self._request_tracer = self._requests.get_tracer(NAME)
        self._batch_tracer = self._batches.get_tracer(NAME)

    def begin(
        self, name: str, headers: Mapping[str, str], attributes: dict[str, Any]
    ) -> RequestSpan:
        """A request's span, below the one that traceparent and tracestate name."""
        span = self._request_tracer.start_span(
            name, PROPAGATOR.extract(headers), SpanKind.SERVER, attributes
        )
        return RequestSpan(self._request_tracer, span)

    def follow(self, engine: Engine) -> None:
        """From now on each forward pass has its spans, too."""
        others = engine.on_forward

        def on_forward(forward: Forward) -> None:
            others(forward)
            self._trace_forward(forward)

        engine.on_forward = on_forward

    def _trace_forward(self, forward: Forward) -> None:
        """A span of the batch, and one in each sampled request whose sequences it has."""
        parts: dict[RequestSpan, list[Sequence]] = {}
        for sequence in forward.batch:
            request = sequence.request.asker.span
            if isinstance(request, RequestSpan) and request.span.is_recording():
                parts.setdefault(request, []).append(sequence)
        if not parts:
            return
        end = time.time_ns()
        start = end - int(forward.seconds * 1e9)
        attributes = {
            "bert_lora.tokens": forward.tokens,
            "bert_lora.sequences": len(forward.batch),
            "bert_lora.adapters": forward.adapters,
        }
        batch = self._batch_tracer.start_span("batch", attributes=attributes, start_time=start)
        for request, sequences in parts.items():
            batch.add_link(request.forward(sequences, batch, start, end))
        batch.end(end)

    def close(self) -> None:
        """Send what is left, for two seconds at most."""
        self._processor.force_flush(FLUSH_MS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class RequestSpan:
    """A request's span and what is below it."""

    tracer: otel.Tracer
    span: otel.Span

    @property
    def traceresponse(self) -> str:
        """As the header of that name writes it: version, trace, span, flags."""
        context = self.span.get_span_context()
        trace, span = otel.format_trace_id(context.trace_id), otel.format_span_id(context.span_id)
        return f"00-{trace}-{span}-{context.trace_flags:02x}"

    def forward(
        self, sequences: list[Sequence], batch: otel.Span, start: int, end: int
    ) -> otel.SpanContext:
        """The sequences' part in the batch, from start to end in ns since 1970."""
        attributes = {
            "bert_lora.tokens": sum(len(sequence.ids) for sequence in sequences),
            "bert_lora.sequences": len(sequences),
        }
        links = [Link(batch.get_span_context())]
        return self._below("forward", start, end, attributes, links)

    def end(self, status: int, trace: Trace) -> None:
        """With the steps before the model, and what the request was and was answered."""
        if self.span.is_recording():
            for name, began, ended in trace.steps:
                self._below(name, _epoch_ns(began), _epoch_ns(ended))
            self.span.set_attributes(_known(status, trace))
            if status >= 500:
                self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()

    def _below(
        self,
        name: str,
        start: int,
        end: int,
        attributes: dict[str, Any] | None = None,
        links: list[Link] | None = None,
    ) -> otel.SpanContext:
        parent = otel.set_span_in_context(self.span)
        span = self.tracer.start_span(
            name, parent, attributes=attributes, links=links, start_time=start
        )
        span.end(end)
        return span.get_span_context()


def _known(status: int, trace: Trace) -> dict[str, Any]:
    attributes: dict[str, Any] = {"http.response.status_code": status}
    if trace.adapters:
        attributes["bert_lora.adapter"] = trace.adapters[:MOST_NAMED]
        attributes["bert_lora.version"] = trace.versions[:MOST_NAMED]
    if trace.tokens:
        attributes["bert_lora.tokens"] = trace.tokens
    if trace.refusal:
        attributes["error.type"] = trace.refusal
    return attributes


def _epoch_ns(at: float) -> int:
    """A time of time.perf_counter() in ns since 1970."""
    return time.time_ns() - int((time.perf_counter() - at) * 1e9)
