"""Spans by OpenTelemetry, for events that carry a trace: publish → receive → fan-out.

A span's context travels in the headers of the event itself, so that nothing is kept beside it: each step
finds its parent there and puts itself in its place. Spans are handed to a thread of the SDK's, which sends
them; when that cannot keep up it drops them, and never holds anybody up.

Imports OpenTelemetry, which is an extra: nobody imports this module unless tracing is enabled.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import attrs
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, TraceState, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.wire import traces
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from broker import config
    from broker.bus.base import Record

NAME = "nats-websocket-broker"
# OpenTelemetry would log each `tracestate` that is none, all of it: a line for an event, as a service likes.
logging.getLogger(TraceState.__module__).setLevel(logging.ERROR)


def make_exporter(settings: config.Tracing) -> SpanExporter:
    """OTLP over HTTP. Its other settings are the SDK's variables: OTEL_EXPORTER_OTLP_HEADERS and the like."""
    return OTLPSpanExporter(endpoint=settings.endpoint)


@attrs.define(eq=False)
class Tracing:
    """Makes spans of what happens to events whose trace is sampled.

    Client publishes without a trace begin one, of which `settings.sample_ratio` are sampled.
    """

    settings: config.Tracing
    exporter: SpanExporter
    provider: TracerProvider = attrs.field(init=False)
    tracer: Tracer = attrs.field(init=False)
    propagator: TraceContextTextMapPropagator = attrs.Factory(TraceContextTextMapPropagator)

    def __attrs_post_init__(self) -> None:
        service = os.environ.get("OTEL_SERVICE_NAME", "broker")
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(self.settings.sample_ratio)),
            resource=Resource.create({"service.name": service, "service.version": version(NAME)}),
            shutdown_on_exit=False,  # `close` has its turn, and a time
        )
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("broker")

    def close(self) -> None:
        """Send what has not been sent yet. Blocks for as long as that takes: for a thread."""
        self.provider.shutdown()

    def begin(
        self, name: str, kind: SpanKind, headers: Mapping[str, str], **attributes: str | int
    ) -> tuple[Span, dict[str, str]]:
        """Return a span under the trace of `headers`, and the headers with the span in its place."""
        carried: dict[str, str] = {}
        fields: dict[str, str] = {}
        for field, value in headers.items():
            if field.lower() in (traces.PARENT, traces.STATE):
                carried[field.lower()] = value
            else:
                fields[field] = value
        named = {f"broker.{key}": printable(value) for key, value in attributes.items()}
        span = self.tracer.start_span(
            name, context=self.propagator.extract(carried), kind=kind, attributes=named
        )
        self.propagator.inject(fields, context=set_span_in_context(span))
        return span, fields

    @contextmanager
    def publishing(self, headers: dict[str, str], *, tenant: str, channel: str) -> Iterator[None]:
        """The span of a client's publish; `headers` have it afterwards."""
        span, fields = self.begin("publish", SpanKind.PRODUCER, headers, tenant=tenant, channel=channel)
        headers.update(fields)
        with use_span(span, end_on_exit=True, record_exception=False):
            yield

    def received(self, records: list[Record], incarnation: str) -> list[Record]:
        """Return the records as they go on: the traced ones with the span of their arrival."""
        return [
            self.receive(record, record[3], incarnation)
            if record[3] and traces.sampled(traces.parent_of(record[3]))
            else record
            for record in records
        ]

    def receive(self, record: Record, headers: Mapping[str, str], incarnation: str) -> Record:
        sequence, subject, body, _ = record
        place = {"position": str(Position(incarnation, sequence))} if sequence else {}
        span, fields = self.begin("receive", SpanKind.CONSUMER, headers, subject=subject, **place)
        span.end()
        return sequence, subject, body, fields

    @contextmanager
    def fanning_out(self, tenant: str, batch: list[tuple[str, Record]]) -> Iterator[dict[int, Span]]:
        """Spans for the traced events of a batch, by their index; in the batch they have them then."""
        spans: dict[int, Span] = {}
        with ExitStack() as open_spans:
            for index, (channel, (sequence, subject, body, headers)) in enumerate(batch):
                if headers and traces.sampled(traces.parent_of(headers)):
                    span, fields = self.begin(
                        "fan-out", SpanKind.INTERNAL, headers, tenant=tenant, channel=channel
                    )
                    open_spans.enter_context(use_span(span, end_on_exit=True, record_exception=False))
                    batch[index] = channel, (sequence, subject, body, fields)
                    spans[index] = span
            yield spans


def printable(value: str | int) -> str | int:
    """Return a subject may hold any byte; protocol buffers refuse what is no text, and with it the whole
    batch.
    """
    if isinstance(value, int):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
