"""Metrics of the process: version, public port, configuration, garbage collector."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from broker.metrics.meters import zeros

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from prometheus_client.core import Metric

STATUSES = (101, 200, 202, 400, 401, 403, 404, 413, 429, 503)
DISTRIBUTION = "nats-websocket-broker"


@attrs.define(eq=False)
class Process:
    """A collector, kept by `app`.

    `responses` counts HTTP responses by status. `certificate_expires` is in Unix seconds; None
    without TLS. `reloaded` says whether the last configuration that was read could be used.
    """

    responses: Counter[int] = attrs.Factory(lambda: zeros(STATUSES))
    certificate_expires: float | None = None
    reloaded: bool = True
    reloaded_at: float = attrs.Factory(time.time)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "broker_build",
            "Versions.",
            value={"version": version(DISTRIBUTION), "python": platform.python_version()},
        )
        responses = CounterMetricFamily(
            "broker_http_responses",
            "HTTP responses of the public port, by status; 101 is a WebSocket.",
            labels=["code"],
        )
        for status, count in self.responses.items():
            responses.add_metric([str(status)], count)
        yield responses
        if self.certificate_expires is not None:
            yield GaugeMetricFamily(
                "broker_certificate_expiry_timestamp_seconds",
                "When the present TLS certificate expires.",
                value=self.certificate_expires,
            )
        yield GaugeMetricFamily(
            "broker_config_last_reload_successful",
            "1 when the last configuration that was read is in force, 0 when it was refused.",
            value=self.reloaded,
        )
        yield GaugeMetricFamily(
            "broker_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read.",
            value=self.reloaded_at,
        )

    def reload(self, *, succeeded: bool) -> None:
        """Record a reload of the configuration."""
        self.reloaded = succeeded
        if succeeded:
            self.reloaded_at = time.time()


@attrs.define(eq=False)
class Pauses:
    """The pauses of the garbage collector: a callback for `gc.callbacks`, and a collector of metrics."""

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
            "broker_gc_pause_seconds", "Time spent in garbage collection.", value=self.total
        )
        yield GaugeMetricFamily(
            "broker_gc_longest_pause_seconds",
            "The longest pause of the garbage collector.",
            value=self.longest,
        )
