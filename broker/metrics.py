"""Every metric of the broker, declared once.

Nothing is counted in hot loops for this: a scrape takes one snapshot of what the actors keep anyway.
Conventions: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric


@attrs.frozen(kw_only=True)
class Statistics:
    """What the broker holds and has done: what is read at a scrape."""

    connections: int
    tenants: int
    behind: int
    ring_events: int
    ring_bytes: int
    stored_events: int
    live_events: int
    live_losses: int
    tenant_restarts: int
    audit_dropped: int
    dead_letters: Mapping[str, int]
    closes: Mapping[str, int]
    ready: bool


GAUGES = {
    "connections": "WebSocket connections that are open.",
    "tenants": "Tenants with an actor.",
    "behind": "Connections that are behind and read on by themselves.",
    "ring_events": "Recent events held in memory.",
    "ring_bytes": "Bytes of recent events held in memory.",
    "ready": "1 while an event can travel from a publisher through the stream to the broker.",
}
COUNTERS = {
    "stored_events": "Messages received from the stream.",
    "live_events": "Messages received on live subjects.",
    "live_losses": "Times that live messages were dropped before they reached the broker.",
    "tenant_restarts": "Crashes of a tenant's actor.",
    "audit_dropped": "Records of the audit trail that could not be kept.",
}


@attrs.frozen
class Collector:
    """Turns a snapshot into metrics, for a `prometheus_client` registry."""

    snapshot: Callable[[], Statistics]

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        taken = self.snapshot()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"broker_{name}", text, value=getattr(taken, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"broker_{name}", text, value=getattr(taken, name))
        letters = CounterMetricFamily(
            "broker_dead_letters", "Messages that were no events, by reason.", labels=["reason"]
        )
        for reason, count in taken.dead_letters.items():
            letters.add_metric([reason], count)
        yield letters
        closes = CounterMetricFamily(
            "broker_connections_closed",
            "Connections that ended, by the close code that the broker gave, or by the client.",
            labels=["code"],
        )
        for code, count in taken.closes.items():
            closes.add_metric([code], count)
        yield closes


@attrs.define(eq=False)
class Pauses:
    """How long the garbage collector made everything wait: a callback for `gc.callbacks`, and its metrics."""

    total: float = 0.0  # seconds
    longest: float = 0.0
    began: float = 0.0

    def __call__(self, phase: str, info: object) -> None:  # noqa: ARG002  `gc` gives it
        now = time.perf_counter()
        if phase == "start":
            self.began = now
            return
        self.total += now - self.began
        self.longest = max(self.longest, now - self.began)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "broker_collector_pause_seconds", "Time that the garbage collector has taken.", value=self.total
        )
        yield GaugeMetricFamily(
            "broker_collector_longest_pause_seconds", "Its longest pause so far.", value=self.longest
        )
