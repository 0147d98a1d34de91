"""Counting and bounding, without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from broker.metrics import meters
from broker.metrics.collector import cumulated
from broker.metrics.meters import Traffic
from broker.metrics.tenants import OTHER, Ledger, fold, largest

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.floats(min_value=0, max_value=20) | st.sampled_from(meters.SECONDS), max_size=50))
def test_a_histogram_counts_as_prometheus_does(values: list[float]) -> None:
    """Bounds belong to their bucket, and what is above them all is counted too."""
    ours = meters.Histogram(meters.SECONDS)
    theirs = Histogram("x", "", buckets=meters.SECONDS, registry=CollectorRegistry())
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    (family,) = theirs.collect()
    expected = [(each.labels["le"], each.value) for each in family.samples if each.name == "x_bucket"]
    assert cumulated(ours) == expected
    assert ours.sum == pytest.approx(sum(values))


@given(st.dictionaries(NAMES, st.integers(0, 9)), st.integers(0, 4))
def test_the_named_and_the_rest_are_all(sizes: Mapping[str, int], most: int) -> None:
    """At most so many have a name, none of the rest is larger than they are, and nothing is lost."""
    named = largest(sizes, most)
    folded = fold(sizes, named)
    assert set(folded) == {*named, OTHER}
    assert len(named) == min(most, len(sizes))
    assert sum(folded.values()) == sum(sizes.values())
    rest = [size for name, size in sizes.items() if name not in named]
    assert all(sizes[name] >= size for name in named for size in rest)


@given(st.lists(st.tuples(st.dictionaries(NAMES, st.integers(1, 9)), st.frozensets(NAMES))))
def test_a_counter_never_falls_while_its_tenant_is_named(
    scrapes: list[tuple[dict[str, int], frozenset[str]]],
) -> None:
    """Whoever comes and goes among the named tenants: everything is counted once, nothing twice."""
    ledger, tenants = Ledger(), {name: Traffic() for name in "abcd"}
    before: dict[str, int] = {}
    added = shown = 0
    for deliveries, named in scrapes:
        for name, count in deliveries.items():
            tenants[name].add(count, 2 * count)
            added += count
        after = {label: each.deliveries for label, each in ledger.settle(tenants, named).items()}
        assert set(after) <= {*named, OTHER}
        assert all(after[label] >= before.get(label, 0) for label in after)
        shown += sum(after[label] - before.get(label, 0) for label in after)
        before = after
    assert shown == added
