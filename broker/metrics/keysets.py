"""Metrics of key sets from addresses: while one cannot be fetched, its known keys stay valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from broker.metrics.statistics import KeySet


@attrs.frozen
class KeySets:
    """A collector; `snapshot` returns the present state of each set by the name of its entry."""

    snapshot: Callable[[], Mapping[str, KeySet]]

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "broker_key_set_up", "1 when the last fetch of the key set succeeded.", labels=["key"]
        )
        keys = GaugeMetricFamily(
            "broker_key_set_keys", "Keys of the last set that was fetched.", labels=["key"]
        )
        unknown = CounterMetricFamily(
            "broker_key_set_unknown", "Tokens that named a key that the set does not have.", labels=["key"]
        )
        for name, each in self.snapshot().items():
            up.add_metric([name], each.fault is None)
            keys.add_metric([name], each.keys)
            unknown.add_metric([name], each.unknown)
        yield from (up, keys, unknown)
