"""A pace in the flow: what comes when, to whom, beside what else they have, and to those that are slow."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import config, filters
from broker.eventlog import lanes
from broker.eventlog.places import at
from broker.flow.flow import Start
from broker.ranges import Ranges
from tests.support.flows import Bench, Link

if TYPE_CHECKING:
    from broker.eventlog.selection import Selection

ODD = filters.parse({"": {"in": [1, 3, 5, 7, 9, 11]}})


def marks(link: Link) -> list[tuple[int, bool, int | None]]:
    """Each event with its marks."""
    found = [each["payload"] for each in link.messages() if each["type"] == "event"]
    return [(each["event"], each.get("paced", False), each.get("catch_up")) for each in found]


def test_the_first_at_once_then_the_newest_when_a_window_ends() -> None:
    bench = Bench()
    link, other = bench.attach(), bench.attach()
    bench.join(link, "a.*", every_ms=1000)
    bench.join(other, "a.*")
    for channels in (["a.x", "a.y"], ["a.x"], ["a.x", "b"], ["a.y"]):
        tick = bench.publish(*channels)
        bench.go(0.1)
    assert bench.log.audience(tick, 0) == 2
    assert marks(link) == [(1, True, None), (2, True, None)]
    link.ping()
    assert link.messages()[-1]["payload"]["position"] == "inc-6", "P goes on"
    bench.go(1)
    assert link.events() == [1, 2, 4, 6]
    bench.go(0.5)
    bench.publish("a.x")
    assert link.events() == [1, 2, 4, 6], "a window began with what was sent"
    bench.go(0.5)
    assert link.events() == [1, 2, 4, 6, 7]
    bench.go(5)
    bench.publish("a.x")
    assert link.events() == [1, 2, 4, 6, 7, 8]
    assert other.events() == [1, 2, 3, 4, 6, 7, 8]
    bench.go(5)
    assert (bench.log.lanes.held(), bench.log.lanes.size, bench.log.lanes.next()) == (0, 0, float("inf"))


def test_of_several_in_one_tick_the_newest_comes() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">", every_ms=100)
    bench.publish("a", "b", "a", "a")
    assert link.events() == [2, 4]


def test_who_comes_later_has_windows_of_its_own() -> None:
    """Its first event at once, and then at its own time; both are in one lane."""
    bench = Bench()
    link, late = bench.attach(), bench.attach()
    bench.join(link, "a", every_ms=1000)
    bench.publish("a")
    bench.go(0.5)
    bench.join(late, "a", every_ms=1000)
    bench.publish("a")
    assert (link.events(), late.events()) == ([1], [2])
    bench.go(0.3)
    bench.publish("a")
    bench.go(0.2)
    assert (link.events(), late.events()) == ([1, 3], [2])
    bench.go(0.5)
    assert (link.events(), late.events()) == ([1, 3], [2, 3])
    assert len(list(bench.log.lanes.all())) == 1


def test_filter_first_then_pace() -> None:
    """What does not pass takes no place; and another pace takes none of a filter."""
    bench = Bench()
    link, quick = bench.attach(), bench.attach()
    bench.join(link, "a", wanted=ODD, every_ms=1000)
    bench.join(quick, "a", wanted=ODD, every_ms=200)
    for _ in range(6):
        bench.publish("a")
        bench.go(0.1)
    bench.go(1)
    assert link.events() == [1, 5]
    assert quick.events() == [1, 3, 5]
    assert len(bench.log.filters) == 1


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"pattern": "a"}, [(1, False), (2, False), (3, False)]),
        ({"pattern": "*", "wanted": ODD}, [(1, False), (3, False)]),
        ({"pattern": "*", "every_ms": 500}, [(1, True), (3, True)]),
        ({"pattern": "*", "every_ms": 500, "wanted": ODD}, [(1, True), (3, True), (3, True)]),
    ],
)
def test_a_connection_gets_the_union(beside: dict[str, Any], expected: list[tuple[int, bool]]) -> None:
    """What comes for a subscription that is not paced, or finer with the same filter, comes once."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">", every_ms=2000)
    bench.join(link, **beside)
    for _ in range(3):
        bench.publish("a")
        bench.go(0.1)
    bench.go(3)
    assert [(event, paced) for event, paced, _ in marks(link)][: len(expected)] == expected
    assert marks(link)[-1][0] == 3


def test_what_an_unpaced_subscription_began_after_comes_paced() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a", every_ms=1000)
    bench.publish("a", "b")
    bench.publish("a")
    bench.join(link, "*")
    bench.go(2)
    assert marks(link) == [(1, True, None), (3, True, None)]


@pytest.mark.parametrize("way", ["another pace", "no pace", "a finer one ends", "another filter"])
def test_what_is_held_is_not_lost_when_options_change(way: str) -> None:
    bench = Bench()
    link = bench.attach()
    finer = bench.join(link, "a", every_ms=1000)
    bench.join(link, ">", every_ms=5000)
    for _ in range(3):
        bench.publish("a")
    assert link.events() == [1]
    match way:
        case "another pace":
            bench.join(link, "a", every_ms=3000)
        case "no pace":
            bench.join(link, "a")
        case "another filter":
            bench.join(link, "a", wanted=ODD, every_ms=1000)
        case _:
            link.flow.leave(finer.pattern)
    bench.go(10)
    assert marks(link)[-1] == (3, True, None)


def test_nothing_follows_an_unsubscribe() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a", every_ms=1000)
    for _ in range(2):
        bench.publish("a")
    link.flow.leave("a")
    bench.join(link, "a", every_ms=1000)
    bench.go(5)
    bench.publish("a")
    assert link.events() == [1, 3]
    link.flow.detach()
    assert (bench.log.lanes.lanes, bench.log.selections, bench.log.lanes.size) == ({}, {}, 0)


def test_a_slow_client_holds_one_event_of_each_channel() -> None:
    """Whatever arrives; it gets the newest, and its windows go on."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, ">", every_ms=100)
    for _ in range(50):
        bench.publish("a", "b", size=100)
        bench.go(0.1)
    assert link.flow.unsent < 200
    assert link.flow.main is not None
    assert len(link.flow.main.held) <= 2
    link.room = 10**6
    link.write()
    assert link.events() == [1, 99, 100] or link.events() == [1, 2, 99, 100]
    assert {each["type"] for each in link.messages()} == {"event"}, "nothing is a gap"
    assert link.flow.main is None
    bench.publish("a")
    bench.go(1)
    assert link.events()[-1] == 101


def test_a_slow_client_gets_all_that_is_not_paced() -> None:
    bench = Bench()
    link = bench.attach(room=150)
    bench.join(link, "a.*", every_ms=100)
    bench.join(link, "*")
    for _ in range(30):
        bench.publish("a.x", "b")
        bench.go(0.1)
    link.room = 10**6
    link.write()
    every = [event for event, paced, _ in marks(link) if not paced]
    assert every == [*range(2, 62, 2)]
    assert max(event for event, paced, _ in marks(link) if paced) == 59


def test_a_resume_begins_with_what_may_have_been_held() -> None:
    """The newest of each channel, from `lead` on; P stands meanwhile, and goes on then."""
    bench = Bench()
    bench.publish("a", "b", "a", "c", "b")
    bench.publish("a", "a")
    link = bench.attach(room=1)
    bench.join(link, ">", every_ms=1000, start=Start(place=at(5), lead=at(1)))
    link.write()
    link.flow.settle()
    assert link.flow.position() == 5
    link.room = 10**6
    link.write()
    assert marks(link) == [(3, True, None), (4, True, None), (5, True, None), (7, True, None)]
    assert [each["payload"]["position"] for each in link.messages() if each["type"] != "event"] == ["inc-7"]
    bench.publish("a")
    assert marks(link)[-1] == (7, True, None), "its windows began"
    bench.go(1)
    assert marks(link)[-1] == (8, True, None)


def test_a_catch_up_has_the_newest_of_each_channel() -> None:
    bench = Bench()
    bench.publish("a", "b", "a", "c", "b")
    link = bench.attach()
    bench.join(link, "z")
    bench.join(link, ">", every_ms=1000, start=Start(place=at(2), lead=at(0)))
    link.write()
    assert marks(link) == [(3, True, 1), (4, True, 1), (5, True, 1)]
    bench.publish("a", "b")
    bench.go(1)
    assert marks(link)[3:] == [(6, True, None), (7, True, None)]


def test_what_a_catch_up_brings_is_for_that_alone() -> None:
    """What is held for another subscription comes all the same: marked events are not for it."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">", every_ms=1000)
    for _ in range(2):
        bench.publish("a")
    bench.join(link, "a", start=Start(place=at(0)))
    link.write()
    bench.go(1)
    assert marks(link) == [(1, True, None), (1, False, 1), (2, False, 1), (2, True, None)]


def test_who_was_slow_gets_the_first_at_once_again() -> None:
    """Also if what it was about to read has been deleted, while the windows of others go on."""
    bench = Bench()
    link, other = bench.attach(room=0), bench.attach()
    for each in (link, other):
        bench.join(each, "a", every_ms=1000)
    bench.publish("a")
    bench.go(2)
    bench.publish("a")
    bench.log.drop(Ranges.of([2]))
    link.room = 10**6
    link.write()
    bench.publish("a")
    assert (link.events(), other.events()) == ([1, 3], [1, 2])
    bench.go(1)
    assert other.events() == [1, 2, 3]


def test_what_is_deleted_is_not_sent() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">", every_ms=1000)
    bench.publish("a", "b")
    bench.publish("a", "b")
    bench.log.drop(Ranges.of([3]))
    bench.go(5)
    assert link.events() == [1, 2, 4]
    assert bench.log.lanes.size == 0


def test_beyond_its_channels_a_lane_paces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.log.lanes.most = 2
    link, slow = bench.attach(), bench.attach(room=0)
    for each in (link, slow):
        bench.join(each, ">", every_ms=1000)
    for _ in range(3):
        bench.publish("a", "b", "c")
    assert link.events() == [1, 2, 3, 6, 9]
    bench.go(1)
    assert link.events() == [1, 2, 3, 6, 9, 7, 8]
    slow.room = 10**6
    slow.write()
    assert sorted(slow.events())[-3:] == [7, 8, 9]
    monkeypatch.setattr(lanes, "MOST_BYTES", 0)
    bench.go(10)
    for _ in range(2):
        bench.publish("a")
    assert link.events()[-2:] == [10, 11]


def test_live_channels_have_a_pace_too() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, "live.>", every_ms=1000)
    for _ in range(3):
        bench.publish("live.a")
    bench.go(1)
    assert marks(link) == [(-1, True, None), (-3, True, None)]
    assert link.messages()[0]["payload"].keys() == {"channel", "event", "paced"}


def test_another_log_takes_over_what_was_held() -> None:
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a", every_ms=1000)
    for _ in range(2):
        bench.publish("a")
    bench.log = bench.make(position=2)
    link.flow.move(bench.log)
    link.write()
    assert link.events() == [1, 2]
    bench.publish("a")
    bench.go(2)
    assert link.events() == [1, 2, 3]
    bench.log = bench.make(position=0, incarnation="new")
    link.flow.move(bench.log)
    link.write()
    assert link.flow.main is None


def test_its_publisher_gets_its_own_form() -> None:
    """With the id of the publish; without an echo nothing, and that takes no other's place."""
    bench = Bench()
    link, other = bench.attach(), bench.attach(user="w")
    for each in (link, other):
        each.flow.user = each.user
        bench.join(each, "a", every_ms=1000)
    for number, echo in enumerate(("true", "false")):
        [(channel, (sequence, subject, body, _))] = bench.records("a")
        headers = {"Broker-User": "u", "Broker-Id": "x", "Broker-Connection": "c", "Broker-Echo": echo}
        bench.log.append([(channel, (sequence, subject, body, headers))])
        bench.log.finish()
        bench.give_due()
        bench.go(2 * number)
    assert (link.events(), other.events()) == ([1], [1, 2])
    assert link.messages()[0]["payload"]["publisher"] == {"user": "u", "id": "x"}
    assert link.messages()[0]["payload"]["paced"]


# --- a naive twin ----------------------------------------------------------------------------------


@attrs.define
class Naive:
    """One subscription as the protocol page says it; times are whole ticks."""

    channels: set[str]
    every: int
    ends: dict[str, int] = attrs.Factory(dict)
    held: dict[str, int] = attrs.Factory(dict)
    given: list[tuple[int, int]] = attrs.Factory(list)  # at which tick, which event

    def give(self, now: int, channel: str, event: int) -> None:
        self.given.append((now, event))
        self.ends[channel] = now + self.every
        self.held.pop(channel, None)

    def at(self, now: int, newest: dict[str, int]) -> None:
        """What happens at a tick: windows end, and then events arrive."""
        for channel, end in list(self.ends.items()):
            if end <= now:
                del self.ends[channel]
                if channel in self.held:
                    self.give(now, channel, self.held[channel])
        for channel, event in newest.items():
            if channel in self.channels:
                if channel in self.ends:
                    self.held[channel] = event
                else:
                    self.give(now, channel, event)


@pytest.mark.parametrize("seed", range(60))
def test_as_a_naive_twin_gives_it(seed: int) -> None:
    """Each of some connections, which come and go, gets exactly what its twin gives, at the same time."""
    rng = random.Random(seed)
    bench = Bench(bounds=config.Ring(events=rng.choice((10, 8192))))
    patterns = {"a": {"a"}, "b": {"b"}, "*": {"a", "b", "c"}, ">": {"a", "b", "c", "d.e"}}
    links: list[tuple[Link, Naive, Selection, list[tuple[int, int]]]] = []
    for now in range(120):
        bench.now = now / 10
        bench.give_due()
        if rng.random() < 0.2:
            pattern, every = rng.choice([*patterns]), rng.choice((1, 2, 5, 30))
            link = bench.attach()
            selection = bench.join(link, pattern, every_ms=every * 100)
            links.append((link, Naive(patterns[pattern], every), selection, []))
        if links and rng.random() < 0.05:
            link, *_ = links.pop(rng.randrange(len(links)))
            link.flow.detach()
        newest = {}
        if rng.random() < 0.7:
            channels = rng.choices(("a", "b", "c", "d.e"), k=rng.randint(1, 3))
            bench.publish(*channels)
            for number, channel in enumerate(channels):
                newest[channel] = bench.sequence - len(channels) + 1 + number
        for link, naive, _, got in links:
            naive.at(now, newest)
            got += [(now, event) for event in link.events()[len(got) :]]
            assert sorted(got) == sorted(naive.given), (now, naive)
    for link, *_ in links:
        link.flow.detach()
    bench.go(10)
    assert (bench.log.lanes.size, bench.log.lanes.lanes, bench.log.lanes.wheel) == (0, {}, {})
