"""Every metric of the broker's actors, declared once, for a `prometheus_client` registry."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from broker.metrics.meters import Histogram
    from broker.metrics.statistics import Statistics, StreamUsage

Labelled: TypeAlias = "Mapping[str, int] | Mapping[tuple[str, str], int]"
LAG = "Lag of connections, in sequences of the stream, which all tenants share"


@attrs.frozen
class Collector:
    """A collector that turns the statistics into metrics."""

    snapshot: Callable[[], Statistics]

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        taken = self.snapshot()
        yield from state(taken)
        yield from connections(taken)
        yield from delivery(taken)
        yield from lag(taken)
        yield from losses(taken)
        yield from nats(taken)
        if taken.stream:
            yield from stream(taken.stream)
        yield gauges(
            "broker_tenant_stream_messages",
            "Messages of a tenant in the stream, at the last count (metrics.share_seconds). Exact in "
            "messages; JetStream does not report bytes, so a tenant with large events takes more of the disk "
            "than its share here.",
            "tenant",
            taken.shares,
        )


def state(taken: Statistics) -> Iterator[Metric]:
    yield gauge(
        "broker_ready",
        "1 while an event can travel from a publisher through the stream to the broker.",
        taken.ready,
    )
    yield gauge("broker_draining", "1 while the broker is draining.", taken.draining)
    yield gauge("broker_tenants", "Tenants with clients now, or within the last minute.", taken.tenants)
    yield counter("broker_tenant_restarts", "Crashes of a tenant's actor.", taken.tenant_restarts)
    yield gauge("broker_filters", "Different filters of the subscriptions of each tenant.", taken.filters)
    yield gauge("broker_documents", "Documents in memory for those who follow them.", taken.documents.held)
    yield gauge("broker_document_bytes", "Bytes of these documents.", taken.documents.bytes)
    yield gauge("broker_document_opens", "Opens of documents by connections.", taken.documents.opens)
    present = taken.presence
    yield gauge("broker_presence_members", "Members whose connections this broker has.", present.members)
    yield gauge("broker_presence_watchers", "Channels watched by connections, summed up.", present.watchers)
    yield gauge("broker_presence_brokers", "Brokers that are alive, this one included.", present.brokers)
    yield counter(
        "broker_presence_judged", "Dead brokers that this one has cleared up after.", present.judged
    )
    yield gauge("broker_paced_channels", "Channels that a pace holds events of, in all tenants.", taken.paced)
    yield gauge("broker_ring_events", "Recent events held in memory.", taken.ring_events)
    yield gauge("broker_ring_bytes", "Bytes of recent events held in memory.", taken.ring_bytes)
    yield gauge("broker_bans", "Revocations and suspensions in force.", taken.bans)
    yield gauge("broker_tasks", "Tasks of the broker's loop.", taken.tasks.living)
    yield gauge("broker_tasks_runnable", "Tasks that are ready to run.", taken.tasks.runnable)
    yield histogram(
        "broker_loop_lag_seconds",
        "How late a task wakes up that sleeps for half a second: the delay of all others in the process.",
        taken.meters.loop_lag,
    )


def connections(taken: Statistics) -> Iterator[Metric]:
    meters = taken.meters
    family = GaugeMetricFamily(
        "broker_connections",
        "Open connections. Tenants beyond the largest ones (metrics.tenants) are _other, connections "
        "without a token yet are _none.",
        labels=["tenant", "transport"],
    )
    for labels, value in taken.connections.items():
        family.add_metric(labels, value)
    yield family
    yield gauge(
        "broker_connections_limit",
        "The maximum number of connections of this process (limits.connections).",
        taken.connections_limit,
    )
    yield counters(
        "broker_connections_opened", "Connections that were opened.", ("transport",), meters.opened
    )
    yield counters(
        "broker_connections_closed",
        "Connections that ended, by who ended them (broker, operator or client; link: it was cut) and the "
        "close code; 1006 where there was none, other for codes that a client made up.",
        ("by", "code"),
        meters.closed,
    )
    yield counters(
        "broker_limits_hit",
        "Times that a limit refused or delayed something, by scope and resource.",
        ("scope", "resource"),
        taken.limits,
    )
    yield counters("broker_errors", "Errors sent to clients, by code.", ("code",), meters.errors)


def delivery(taken: Statistics) -> Iterator[Metric]:
    meters = taken.meters
    yield counters(
        "broker_events_received",
        "Messages received: from the stream (stored), and live ones.",
        ("kind",),
        meters.received,
    )
    sums = taken.traffic.items()
    yield counters(
        "broker_deliveries",
        "Events handed to connections, counted once per connection: directly, or when one that lagged has "
        "reached them. Tenants beyond the largest ones are _other.",
        ("tenant",),
        {tenant: each.deliveries for tenant, each in sums},
    )
    yield counters(
        "broker_delivered_bytes",
        "Bytes of those events as sent, with their frames.",
        ("tenant",),
        {tenant: each.bytes for tenant, each in sums},
    )
    yield histogram(
        "broker_fan_out_duration_seconds",
        "From an encoded tick (the events of a tenant that are sent together) to its last write; ticks that "
        "reach nobody are left out.",
        meters.fan_out,
    )
    yield histogram(
        "broker_request_duration_seconds",
        "From a client's request to the answer of the service. Requests without an answer are broker_errors.",
        meters.calls,
    )
    yield counters(
        "broker_changes",
        "Changes of documents by their outcome: changed, unchanged (there was nothing to write), or the code "
        "of the error.",
        ("outcome",),
        meters.changes.outcomes,
    )
    yield histogram(
        "broker_change_duration_seconds",
        "From a change of a document to its outcome: what it waited for others, its service and the stream.",
        meters.changes.seconds,
    )
    yield counter(
        "broker_changes_lost",
        "Changes of documents that were confirmed, and whose place another write has taken all the same.",
        meters.changes.lost,
    )
    yield counter(
        "broker_document_foreign_writes",
        "Writes of documents that do not say what they replace, as those of services.",
        meters.changes.foreign,
    )
    yield histogram("broker_tick_events", "Events in a tick.", meters.batch)
    yield histogram(
        "broker_publish_to_write_seconds",
        "From the time at which NATS stored an event to the end of the writes of its tick. One sample for "
        "events that NATS delivered together, of the oldest. It compares the clocks of NATS and this host: "
        "their offset is included, and negative values count as 0.",
        meters.latency,
    )


def lag(taken: Statistics) -> Iterator[Metric]:
    by_tenant = (
        ("broker_connections_behind", "Connections that lag and read at their own pace.", taken.behind),
        ("broker_lag_positions", f"{LAG}, added up.", taken.lag_sum),
        ("broker_lag_positions_max", f"{LAG}: the largest.", taken.lag_max),
    )
    for name, text, values in by_tenant:
        yield gauges(name, text, "tenant", values)
    yield by_source(
        "broker_replay_duration_seconds",
        "From the start of a resume or catch-up until it was live, by its source: memory alone "
        "(ring) or the stream too. A snapshot counts as read from the stream.",
        taken.meters.replays,
    )
    yield by_source(
        "broker_history_duration_seconds",
        "From a request for a page of history to its answer, by its source: memory alone (ring) or the "
        "stream too.",
        taken.meters.pages,
    )
    yield gauge("broker_stream_reads_waiting", "Reads of the stream that are queued.", taken.reads_waiting)
    yield gauge(
        "broker_snapshot_bytes",
        "Bytes of snapshots in memory: those being sent to clients, and those kept for the next ones.",
        taken.snapshots.bytes,
    )
    yield gauge(
        "broker_snapshot_bytes_limit",
        "The maximum of these bytes in this process (limits.snapshot_memory_bytes).",
        taken.snapshots.limit,
    )
    yield counters(
        "broker_snapshots",
        "Snapshots that clients requested: read from the stream (read), made from one in memory "
        "(shared), or refused as unavailable for lack of memory (refused).",
        ("from",),
        taken.snapshots.by,
    )


def losses(taken: Statistics) -> Iterator[Metric]:
    yield counters("broker_gaps", "Gaps reported to clients, by reason.", ("reason",), taken.meters.gaps)
    yield counters(
        "broker_dead_letters",
        "Messages that were not valid events, by reason.",
        ("reason",),
        taken.dead_letters,
    )
    yield counter("broker_audit_dropped", "Audit records that could not be stored.", taken.audit_dropped)
    yield counter(
        "broker_live_losses",
        "Times that live messages were dropped before they reached the broker.",
        taken.meters.live_losses,
    )


def nats(taken: Statistics) -> Iterator[Metric]:
    meters = taken.meters
    yield gauge("broker_nats_connected", "1 while the stream can be reached.", taken.connected)
    yield counter(
        "broker_nats_interruptions",
        "Times that the stream was lost; all but the present loss ended with a reconnection.",
        meters.interruptions,
    )
    yield histogram(
        "broker_nats_round_trip_seconds",
        "From the publish of a canary to the stream's acknowledgement.",
        meters.round_trip,
    )
    yield histogram(
        "broker_canary_travel_seconds",
        "From the publish of a canary to its arrival through the stream.",
        meters.canary,
    )
    if taken.canary_age is not None:
        yield gauge("broker_canary_age_seconds", "Time since the last canary arrived.", taken.canary_age)


def stream(usage: StreamUsage) -> Iterator[Metric]:
    """Yield the figures of the last look at the stream, none while it cannot be reached."""
    yield gauge("broker_stream_messages", "Messages in the stream.", usage.messages)
    yield gauge("broker_stream_bytes", "Bytes of the stream.", usage.bytes)
    yield gauge("broker_stream_first_sequence", "The oldest sequence in the stream.", usage.first)
    yield gauge("broker_stream_last_sequence", "The newest sequence in the stream.", usage.last)
    if usage.max_bytes is not None:
        yield gauge(
            "broker_stream_max_bytes", "Bytes at which the oldest messages are deleted.", usage.max_bytes
        )
    yield gauge(
        "broker_stream_lag_messages",
        "Sequences of the stream that this broker has not read yet.",
        usage.lag,
    )


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """Return a metric with a sample for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, number in values.items():
        family.add_metric([key], number)
    return family


def counters(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """Return a metric with a sample for each combination of label values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, number in values.items():
        family.add_metric([key] if isinstance(key, str) else key, number)
    return family


def by_source(name: str, text: str, histograms: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["source"])
    for source, each in histograms.items():
        family.add_metric([source], cumulated(each), each.sum)
    return family


def histogram(name: str, text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=cumulated(values), sum_value=values.sum)


def cumulated(values: Histogram) -> list[tuple[str, float]]:
    """Return cumulative buckets, as Prometheus counts: each includes all below it."""
    bounds = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
    return list(zip(bounds, accumulate(values.counts), strict=True))
