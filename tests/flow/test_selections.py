"""Filters and echoes in the flow: over merged ticks, in another log, and from tick to tick."""

from __future__ import annotations

from broker import filters
from broker.eventlog.tick import merged
from tests.support.flows import Bench

ODD = filters.parse({"": {"in": [1, 3, 5, 7]}})


def test_a_merged_tick_is_evaluated_as_a_whole() -> None:
    """Also if one of its parts has been, and others know all selections without a filter."""
    bench = Bench()
    ticks = [bench.publish("a", "a"), bench.publish("a", "a", "a")]
    wanted, every = bench.log.acquire("a", (), ODD), bench.log.acquire(">", ())
    assert ticks[1].mask(wanted) == 0b101
    assert [tick.mask(every) for tick in ticks] == [0b11, 0b111]
    whole = merged(ticks)
    assert (whole.mask(wanted), whole.mask(every)) == (0b10101, 0b11111)


def test_a_tick_in_another_log_is_evaluated_anew() -> None:
    """What it had evaluated was for selections of the one before, which are counted anew."""
    bench = Bench()
    for channel in ("a", "b", "c"):
        bench.log.acquire(channel, (), ODD)
    tick = bench.publish("a", "a", "a")
    other = bench.make(position=3)
    wanted = other.acquire("a", (), filters.parse({"": 2}))
    tick.move(other)
    assert tick.mask(wanted) == 0b010


def test_a_connection_takes_its_filters_along() -> None:
    """Into another log of its tenant, where they count as they did; and when its rights change."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a", wanted=ODD)
    bench.log = bench.make(position=0)
    link.flow.move(bench.log)
    link.flow.retune("a", ("b",))
    bench.publish("a", "a", "a")
    link.write()
    assert link.events() == [1, 3]
    assert (bench.log.filters[ODD], link.flow.filtered()) == (1, {"a"})


def test_what_is_not_for_a_connection_takes_nothing_with_it() -> None:
    """A tick that is all its own is not sent to it, and the next one comes whole, in order."""
    bench = Bench()
    link, other = bench.attach(), bench.attach(user="w")
    for each in (link, other):
        each.flow.user = each.user
        for pattern in ("a", ">"):
            bench.join(each, pattern)
    headers = {"Broker-User": "u", "Broker-Id": "x", "Broker-Connection": "c", "Broker-Echo": "false"}
    for unechoed in (True, False, True, False):
        [(channel, (sequence, subject, body, _))] = bench.records("a")
        tick = bench.log.append([(channel, (sequence, subject, body, headers if unechoed else None))])
        for data, _, flows in bench.log.shares(tick):
            assert data
            for flow in flows:
                flow.mask = 0
                flow.try_send(data)
        bench.log.finish()
        assert (link.flow.mask, other.flow.mask) == (0, 0)
    assert (link.events(), other.events()) == ([2, 4], [1, 2, 3, 4])
