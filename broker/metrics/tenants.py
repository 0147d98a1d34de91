"""A bounded number of series by tenant: some tenants have their own, the others share one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.metrics.meters import Traffic

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

OTHER = "_other"  # no tenant's name begins so
NONE = "_none"  # connections without a token yet


def largest(sizes: Mapping[str, int], most: int) -> frozenset[str]:
    """Return the names with the largest sizes, at most so many; stable while the sizes are."""
    return frozenset(sorted(sizes, key=lambda name: (-sizes[name], name))[:most])


def fold(values: Mapping[str, int], named: Collection[str]) -> dict[str, int]:
    """Return the values of the named tenants, and the sum of all others as `OTHER`."""
    folded = {name: value for name, value in values.items() if name in named}
    folded[OTHER] = sum(values.values()) - sum(folded.values())
    return folded


@attrs.define(eq=False)
class Ledger:
    """Traffic by label, which never decreases, whichever tenants are named.

    A sum that is recalculated at each scrape would fall when a tenant leaves it, and Prometheus takes a
    falling counter for a restarted one. So a tenant's increase is added once, to the label that it has at
    that time; a tenant that is named again starts at 0.
    """

    totals: dict[str, Traffic] = attrs.Factory(lambda: {OTHER: Traffic()})

    def book(self, label: str, traffic: Traffic) -> None:
        """Add an increase to a label."""
        self.totals.setdefault(label, Traffic()).add(traffic.deliveries, traffic.bytes)
        traffic.deliveries = traffic.bytes = 0

    def settle(self, tenants: Mapping[str, Traffic], named: Collection[str]) -> Mapping[str, Traffic]:
        """Add the increase of each tenant; return the totals of the named ones and of the rest."""
        for name, traffic in tenants.items():
            self.book(name if name in named else OTHER, traffic)
        self.totals = {name: total for name, total in self.totals.items() if name in named or name == OTHER}
        return self.totals
