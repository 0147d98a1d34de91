"""Series by tenant, bounded: some tenants have their own, the rest are one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.metrics.meters import Traffic

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

OTHER = "_other"  # begins as no tenant's name does
NONE = "_none"  # connections that have not shown a token yet


def largest(sizes: Mapping[str, int], most: int) -> frozenset[str]:
    """Return the names with the largest sizes, at most so many; the same ones as long as the sizes are."""
    return frozenset(sorted(sizes, key=lambda name: (-sizes[name], name))[:most])


def fold(values: Mapping[str, int], named: Collection[str]) -> dict[str, int]:
    """Return the values of the named tenants, and the sum of all others as `OTHER`."""
    folded = {name: value for name, value in values.items() if name in named}
    folded[OTHER] = sum(values.values()) - sum(folded.values())
    return folded


@attrs.define(eq=False)
class Ledger:
    """Traffic by label, which only ever grows, whoever comes and goes among the named tenants.

    A counter that was summed anew at each scrape would fall when a tenant leaves the sum, and Prometheus
    takes a counter that falls for one that began anew. So what a tenant adds is booked under the label that
    it has by then, once; a tenant that is named again begins at 0.
    """

    totals: dict[str, Traffic] = attrs.Factory(lambda: {OTHER: Traffic()})

    def book(self, label: str, traffic: Traffic) -> None:
        """Move what was counted to a label."""
        self.totals.setdefault(label, Traffic()).add(traffic.deliveries, traffic.bytes)
        traffic.deliveries = traffic.bytes = 0

    def settle(self, tenants: Mapping[str, Traffic], named: Collection[str]) -> Mapping[str, Traffic]:
        """Books what the tenants have added; the totals of those that are named, and of the rest."""
        for name, traffic in tenants.items():
            self.book(name if name in named else OTHER, traffic)
        self.totals = {name: total for name, total in self.totals.items() if name in named or name == OTHER}
        return self.totals
