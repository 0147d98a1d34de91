"""Tracing: what is said of an event is what became of it, and who follows cannot hold anything up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker import filters
from broker.actors import following
from broker.actors.following import (
    FOLLOWED_PER_TICK,
    FOLLOWERS,
    HELD,
    SHOWN_CONNECTIONS,
    Followers,
    Missed,
    Traced,
)
from broker.errors import Conflict
from broker.eventlog.places import sequence_of
from broker.features.port import Letter
from tests.support.flows import Bench

if TYPE_CHECKING:
    from broker.actors.following import Entry
    from broker.flow.flow import Flow


def trace(bench: Bench, *channels: str, pattern: str = ">", slow: tuple[Flow, ...] = ()) -> list[Entry]:
    """What is told of one tick with these channels."""
    followers = Followers()
    with followers.follow("acme", pattern) as follower:
        tick = bench.publish(*channels)
        # As the intake has it: the tick's records by their channels.
        batch: list[Any] = [
            (channel, (0 if channel.startswith("live.") else sequence, f"events.acme.{channel}", b"1", None))
            for channel, sequence in zip(tick.channels, map(sequence_of, tick.places), strict=True)
        ]
        followers.sent("acme", bench.log, flows(bench), batch, tick, slow)
        return list(follower.waiting)


def flows(bench: Bench) -> list[Flow]:
    """All connections."""
    found = {flow: None for each in bench.log.selections.values() for flow in each.members}
    return list(found)


def only(entries: list[Entry]) -> Traced:
    (entry,) = entries
    assert isinstance(entry, Traced)
    return entry


def test_written_and_behind() -> None:
    """A client that takes all has it written; one that takes nothing is behind, by how much is told."""
    bench = Bench()
    quick, slow = bench.attach(user="quick"), bench.attach(user="slow", room=0)
    for link in (quick, slow):
        bench.join(link, "a.>")
    bench.publish("a.1", "a.1")
    entry = only(trace(bench, "a.2"))
    assert (entry.channel, entry.position, entry.form, entry.bytes) == ("a.2", "inc-3", "json", 1)
    assert [(each.pattern, each.connections, each.denied) for each in entry.audiences] == [("a.>", 2, False)]
    assert entry.outcomes == {"behind": 1, "written": 1}
    first, second = entry.connections
    assert (first.user, first.outcome, first.lag, first.events_behind) == ("slow", "behind", "replay", 2)
    assert (second.user, second.outcome, second.events_behind) == ("quick", "written", None)


def test_denied_and_not_subscribed() -> None:
    """Who has the channel taken out by its token is named as denied; who subscribed to others is not."""
    bench = Bench()
    everything, denied, other = bench.attach(), bench.attach(), bench.attach()
    bench.join(everything, ">")
    bench.join(denied, ">", deny=("a.secret",))
    bench.join(other, "b")
    entry = only(trace(bench, "a.secret"))
    assert [(each.connections, each.denied) for each in entry.audiences] == [(1, False), (1, True)]
    assert entry.outcomes == {"written": 1}
    assert [each["payload"]["channel"] for each in everything.messages()] == ["a.secret"]
    assert denied.messages() == []


def test_filtered() -> None:
    """Whose filter leaves it out is named; a filter of other channels is not."""
    bench = Bench()
    for pattern, number in ((">", 1), ("a", 2), ("b", 2)):
        bench.join(bench.attach(), pattern, wanted=filters.parse({"": number}))
    entry = only(trace(bench, "a"))
    found = [(each.pattern, each.connections, each.filtered) for each in entry.audiences]
    assert found == [(">", 1, False), ("a", 1, True)]
    assert entry.outcomes == {"written": 1}


@pytest.mark.parametrize(("lag", "outcome"), [("drop", "dropped"), ("close", "closed"), ("latest", "behind")])
def test_lag_policies(lag: Any, outcome: str) -> None:
    """What a policy does with an event of which too much waits is said before it is done."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, "a", policy=lag)
    bench.publish("a")
    entry = only(trace(bench, "a", slow=(link.flow,)))
    assert [(each.outcome, each.lag) for each in entry.connections] == [(outcome, lag)]


def test_lost_links_and_catch_ups() -> None:
    """A lost link has it not written, though nothing waits there; a catch-up is on its way to it."""
    bench = Bench()
    lost, late = bench.attach(lost=True, user="lost"), bench.attach(user="late")
    bench.join(lost, "a")
    bench.publish("a")
    bench.catch_up(late, "a", after=0)
    entry = only(trace(bench, "a"))
    assert {each.user: each.outcome for each in entry.connections} == {"lost": "gone", "late": "catching_up"}


def test_live_events_and_patterns() -> None:
    """Live events have no position; another pattern or tenant is not followed."""
    bench = Bench()
    bench.join(bench.attach(), "live.x")
    entry = only(trace(bench, "live.x", "a", pattern="live.>"))
    assert (entry.channel, entry.position, entry.outcomes) == ("live.x", None, {"written": 1})
    assert trace(bench, "b", pattern="a") == []
    followers = Followers()
    with followers.follow("globex", ">") as follower:
        tick = bench.publish("a")
        followers.sent("acme", bench.log, flows(bench), [("a", (9, "events.acme.a", b"1", None))], tick, ())
        assert not follower.waiting
        followers.refused(letter("acme"))
        assert not follower.waiting
        followers.refused(letter("_all"))
        assert follower.waiting


def letter(tenant: str) -> Letter:
    return Letter(
        record=(7, f"events.{tenant}.a", b"{", None),
        tenant=tenant,
        channel="a",
        incarnation="inc",
        reason="not_json",
        detail="x",
    )


def test_a_storm_is_bounded() -> None:
    """Of a large tick the first events are followed, the rest counted; of many connections some are named."""
    bench = Bench()
    for _ in range(SHOWN_CONNECTIONS + 5):
        bench.join(bench.attach(), "a")
    slow = bench.attach(room=0, user="slow")
    bench.join(slow, "a")
    followers = Followers()
    with followers.follow("acme", "a") as follower:
        tick = bench.publish(*["a"] * (FOLLOWED_PER_TICK + 3))
        batch: list[Any] = [("a", (1, "events.acme.a", b"1", None))] * len(tick.channels)
        followers.sent("acme", bench.log, flows(bench), batch, tick, ())
        assert len(follower.waiting) == FOLLOWED_PER_TICK
        assert follower.missed == 3
        entry = follower.waiting[0]
        assert isinstance(entry, Traced)
        assert entry.outcomes == {"written": SHOWN_CONNECTIONS + 6}
        assert len(entry.connections) == SHOWN_CONNECTIONS


def test_many_connections_are_looked_at_for_few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections an event concerns, a tick looks at a bounded number; the first is told."""
    monkeypatch.setattr(following, "CONNECTIONS_PER_TICK", 10)
    bench = Bench()
    for _ in range(11):
        bench.join(bench.attach(), "a")
    assert [len(trace(bench, *[channel] * 3)) for channel in ("a", "b")] == [1, 3]


async def test_what_nobody_takes_is_counted() -> None:
    """A follower that does not come for its entries holds a bounded number, and learns what it missed."""
    followers = Followers()
    with followers.follow("acme", ">") as follower:
        for _ in range(HELD + 4):
            followers.refused(letter("acme"))
        taken = await follower.take()
        assert len(taken) == HELD + 1
        assert taken[-1] == Missed(count=4)
        followers.refused(letter("acme"))
        assert len(await follower.take()) == 1
        with trio.move_on_after(0) as scope:
            await follower.take()
        assert scope.cancelled_caught


def test_so_many_at_a_time() -> None:
    """One too many is refused; one that ended makes room, and with the last one everything is off."""
    followers = Followers()
    opened = [followers.follow("acme", ">") for _ in range(FOLLOWERS)]
    for each in opened:
        each.__enter__()
    with pytest.raises(Conflict), followers.follow("acme", ">"):
        pass
    for each in opened:
        each.__exit__(None, None, None)
    assert not followers
