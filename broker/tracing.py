"""OpenTelemetry spans for events that carry a trace: publish → receive → fan-out.

The context of a span travels in the headers of the event, so that no other state is needed: each step takes
its parent from there and replaces it by its own span. A thread of the SDK exports the spans; when it cannot
keep up it drops them, and never blocks anything.

Imports OpenTelemetry, an optional dependency, so this module is imported only when tracing is enabled.
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
from opentelemetry.trace import SpanKind, StatusCode, TraceState, set_span_in_context, use_span
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
# OpenTelemetry would log each invalid `tracestate` in full: a service could cause a line for every event.
logging.getLogger(TraceState.__module__).setLevel(logging.ERROR)


def make_exporter(settings: config.Tracing) -> SpanExporter:
    """Return an OTLP/HTTP exporter; see OTEL_EXPORTER_OTLP_HEADERS etc. for its other settings."""
    return OTLPSpanExporter(endpoint=settings.endpoint)


@attrs.define(eq=False)
class Tracing:
    """Creates spans for events whose trace is sampled.

    A client's publish without a trace begins one; the share `settings.sample_ratio` of these is sampled.
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
            shutdown_on_exit=False,  # `close` is called in its turn and with a time limit
        )
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("broker")

    def close(self) -> None:
        """Send all spans that have not been sent. Blocks meanwhile: call it in a thread."""
        self.provider.shutdown()

    def begin(
        self, name: str, kind: SpanKind, headers: Mapping[str, str], **attributes: str | int
    ) -> tuple[Span, dict[str, str]]:
        """Return a new span within the trace of `headers`, and the headers with that span as the parent."""
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
        """Open the span of a client's publish, and put it into `headers`."""
        with self.sending("publish", SpanKind.PRODUCER, headers, tenant=tenant, channel=channel):
            yield

    @contextmanager
    def asking(self, headers: dict[str, str], *, tenant: str, method: str) -> Iterator[None]:
        """Open the span of a client's request to a service, and put it into `headers`."""
        with self.sending("request", SpanKind.CLIENT, headers, tenant=tenant, method=method):
            yield

    @contextmanager
    def sending(
        self, name: str, kind: SpanKind, headers: dict[str, str], **attributes: str
    ) -> Iterator[None]:
        span, fields = self.begin(name, kind, headers, **attributes)
        headers.update(fields)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except Exception as error:
                # The words may be a service's: they are for the client alone.
                span.set_status(StatusCode.ERROR, getattr(error, "code", type(error).__name__))
                raise

    def received(self, records: list[Record], incarnation: str) -> list[Record]:
        """Return the records, the sampled ones with a span for their arrival in the headers."""
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
        """Yield spans for the sampled events of a batch, by index, and put them into their headers."""
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
    """Return a text without undecodable bytes, for which protocol buffers would refuse the whole batch.

    A subject may contain any byte.
    """
    if isinstance(value, int):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
