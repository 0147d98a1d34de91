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
LAG = "How far connections are behind, in sequences of the stream, which all tenants share"


@attrs.frozen
class Collector:
    """Turns a snapshot into metrics."""

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
            "Messages that the stream holds of a tenant, at the last count (metrics.share_seconds). Exact in "
            "messages; JetStream does not tell bytes, so a tenant with large events takes more of the disk "
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
    yield gauge("broker_draining", "1 while the broker is about to stop.", taken.draining)
    yield gauge("broker_tenants", "Tenants with clients now, or a minute ago.", taken.tenants)
    yield counter("broker_tenant_restarts", "Crashes of a tenant's actor.", taken.tenant_restarts)
    yield gauge("broker_ring_events", "Recent events held in memory.", taken.ring_events)
    yield gauge("broker_ring_bytes", "Bytes of recent events held in memory.", taken.ring_bytes)
    yield gauge("broker_bans", "Revocations and suspensions in force.", taken.bans)
    yield gauge("broker_tasks", "Tasks of the broker's loop.", taken.tasks.living)
    yield gauge("broker_tasks_runnable", "Tasks that wait for their turn.", taken.tasks.runnable)
    yield histogram(
        "broker_loop_lag_seconds",
        "How late a task woke up that wanted to twice a second: what everything else in the process waits.",
        taken.meters.loop_lag,
    )


def connections(taken: Statistics) -> Iterator[Metric]:
    meters = taken.meters
    family = GaugeMetricFamily(
        "broker_connections",
        "Open connections. Tenants beyond the largest ones (metrics.tenants) are _other, connections "
        "that have not shown a token yet are _none.",
        labels=["tenant", "transport"],
    )
    for labels, value in taken.connections.items():
        family.add_metric(labels, value)
    yield family
    yield gauge(
        "broker_connections_limit",
        "Connections that this process may have (limits.connections).",
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
        "Times that a limit refused or held up something, by whose it was and of what.",
        ("scope", "resource"),
        taken.limits,
    )
    yield counters("broker_errors", "Errors that clients were told, by code.", ("code",), meters.errors)


def delivery(taken: Statistics) -> Iterator[Metric]:
    meters = taken.meters
    yield counters(
        "broker_events_received",
        "Messages received: of the stream (stored), and live ones.",
        ("kind",),
        meters.received,
    )
    sums = taken.traffic.items()
    yield counters(
        "broker_deliveries",
        "Events handed to connections, each once a connection: directly, or when one that was behind has "
        "come to them. Tenants beyond the largest ones are _other.",
        ("tenant",),
        {tenant: each.deliveries for tenant, each in sums},
    )
    yield counters(
        "broker_delivered_bytes",
        "Bytes of those events as they are sent, with their frames.",
        ("tenant",),
        {tenant: each.bytes for tenant, each in sums},
    )
    yield histogram(
        "broker_fan_out_duration_seconds",
        "From an encoded tick (the events of a tenant that are sent together) to its last write, ticks that "
        "reach nobody left out.",
        meters.fan_out,
    )
    yield histogram("broker_tick_events", "Events in a tick.", meters.batch)
    yield histogram(
        "broker_publish_to_write_seconds",
        "From the moment at which NATS stored an event to the end of the writes of its tick. One sample for "
        "what NATS delivered at once, of its oldest event. Of two clocks, NATS's and this machine's: their "
        "difference is in it, and what is negative counts as 0.",
        meters.latency,
    )


def lag(taken: Statistics) -> Iterator[Metric]:
    by_tenant = (
        ("broker_connections_behind", "Connections that read on at their own pace.", taken.behind),
        ("broker_lag_positions", f"{LAG}, added up.", taken.lag_sum),
        ("broker_lag_positions_max", f"{LAG}, of the one that is furthest behind.", taken.lag_max),
    )
    for name, text, values in by_tenant:
        yield gauges(name, text, "tenant", values)
    family = HistogramMetricFamily(
        "broker_replay_duration_seconds",
        "From the start of a resume or catch-up to where it was live, by where it was read: in memory alone "
        "(ring) or in the stream too. A snapshot counts as read in the stream.",
        labels=["source"],
    )
    for source, durations in taken.meters.replays.items():
        family.add_metric([source], cumulated(durations), durations.sum)
    yield family
    yield gauge(
        "broker_stream_reads_waiting", "Reads of the stream that wait for their turn.", taken.reads_waiting
    )
    yield gauge(
        "broker_snapshot_bytes",
        "Bytes of snapshots in memory: of those that clients are being sent, and of those kept for the next.",
        taken.snapshots.bytes,
    )
    yield gauge(
        "broker_snapshot_bytes_limit",
        "Bytes of snapshots that this process may hold (limits.snapshot_memory_bytes).",
        taken.snapshots.limit,
    )
    yield counters(
        "broker_snapshots",
        "Snapshots that clients asked for: read from the stream (read), made of one that was in memory "
        "(shared), or refused with unavailable for want of memory (refused).",
        ("from",),
        taken.snapshots.by,
    )


def losses(taken: Statistics) -> Iterator[Metric]:
    yield counters("broker_gaps", "Gaps that clients were told, by reason.", ("reason",), taken.meters.gaps)
    yield counters(
        "broker_dead_letters", "Messages that were no events, by reason.", ("reason",), taken.dead_letters
    )
    yield counter(
        "broker_audit_dropped", "Records of the audit trail that could not be kept.", taken.audit_dropped
    )
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
        "Times that the stream was lost; but for the present one each was followed by a reconnection.",
        meters.interruptions,
    )
    yield histogram(
        "broker_nats_round_trip_seconds",
        "From publishing a canary to the stream's acknowledgement.",
        meters.round_trip,
    )
    yield histogram(
        "broker_canary_travel_seconds",
        "From publishing a canary to its arrival through the stream.",
        meters.canary,
    )
    if taken.canary_age is not None:
        yield gauge("broker_canary_age_seconds", "Since the last canary arrived.", taken.canary_age)


def stream(usage: StreamUsage) -> Iterator[Metric]:
    """Yield the figures of the last look at the stream, none while it cannot be reached."""
    yield gauge("broker_stream_messages", "Messages in the stream.", usage.messages)
    yield gauge("broker_stream_bytes", "Bytes of the stream.", usage.bytes)
    yield gauge("broker_stream_first_sequence", "The oldest sequence in the stream.", usage.first)
    yield gauge("broker_stream_last_sequence", "The newest sequence in the stream.", usage.last)
    if usage.max_bytes is not None:
        yield gauge("broker_stream_max_bytes", "Bytes at which the oldest messages go.", usage.max_bytes)
    yield gauge(
        "broker_stream_lag_messages",
        "Sequences of the stream that this broker had not read yet.",
        usage.lag,
    )


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """Return one for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, number in values.items():
        family.add_metric([key], number)
    return family


def counters(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """Return one for each combination of values of the labels."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, number in values.items():
        family.add_metric([key] if isinstance(key, str) else key, number)
    return family


def histogram(name: str, text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=cumulated(values), sum_value=values.sum)


def cumulated(values: Histogram) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts: each with all that are below it."""
    bounds = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
    return list(zip(bounds, accumulate(values.counts), strict=True))
