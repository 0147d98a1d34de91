"""Ticks and the ring, against lists of events looked at one by one."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, ring, subjects
from broker.ranges import Ranges
from broker.ring import Ring, Tick
from broker.routing import Topic

CHANNELS = ["a", "a.b", "b", "users.u.i", "users.w.i", "live.a", "live.users.u.i"]
PATTERNS = ["a", "a.>", ">", "*", "b", "users.u.>", "users.*.i", "live.>", "live.a", "live.users.u.>"]
DENIALS: list[tuple[str, ...]] = [(), ("a.b",), ("a", "users.w.>"), (">",)]


@attrs.frozen
class Event:
    """One event as a naive reader knows it: `sequence` is that of the last stored one for a live one."""

    counter: int
    sequence: int
    channel: str
    frame: bytes


@attrs.define(eq=False)
class Known:
    """All topics that there are, as a fan-out knows them; `asked` has the channels that were looked up."""

    topics: list[Topic] = attrs.Factory(list)
    asked: list[str] = attrs.Factory(list)
    serial: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.serial = max((topic.serial for topic in self.topics), default=0)

    def of(self, channel: str) -> list[Topic]:
        self.asked.append(channel)
        return [topic for topic in self.topics if topic.admits(channel)]


def make_tick(
    events: list[Event],
    topics: list[Topic],
    *,
    base: int,
    time: float = 0.0,
    known: Known | None = None,
) -> Tick:
    """A tick that knows the given topics, its masks worked out event by event."""
    masks: dict[Any, int] = {}
    for topic in topics:
        for bit, event in enumerate(events):
            if topic.admits(event.channel):
                masks[topic] = masks.get(topic, 0) | 1 << bit
    return Tick(
        first=events[0].counter,
        sequences=[event.sequence for event in events],
        channels=[event.channel for event in events],
        frames=[event.frame for event in events],
        masks=masks,
        base=base,
        head=events[-1].sequence,
        serial=max((topic.serial for topic in topics), default=0),
        topics=known or Known(topics),
        time=time,
    )


def make_events(channels: list[tuple[str, int]], *, counter: int, base: int) -> list[Event]:
    """One event a channel, each with the number of other tenants' events that came before it."""
    found = []
    for number, (channel, others) in enumerate(channels):
        base += 0 if subjects.is_live(channel) else others + 1
        found.append(Event(counter + number, base, channel, b"<%d>" % (counter + number)))
    return found


EVENTS = st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 3)), min_size=1, max_size=12)
TOPICS = st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from(DENIALS)), max_size=6)


@settings(deadline=None, max_examples=300)
@given(
    channels=EVENTS,
    wanted=TOPICS,
    floors=st.lists(st.integers(8, 36), min_size=6, max_size=6),
    data=st.data(),
)
def test_share_is_what_one_by_one_would_be(
    channels: list[tuple[str, int]],
    wanted: list[tuple[str, tuple[str, ...]]],
    floors: list[int],
    data: st.DataObject,
) -> None:
    """The union of all topics, each above its floor, whether a topic is older or younger than the tick."""
    events = make_events(channels, counter=20, base=10)
    topics = [Topic(pattern, deny, serial + 1) for serial, (pattern, deny) in enumerate(wanted)]
    old = data.draw(st.integers(0, len(topics)), label="topics that the tick knows")
    after = data.draw(st.integers(0, len(events)), label="after")
    tick = make_tick(events, topics[:old], base=10, known=Known(topics))
    standing = dict(zip(topics, floors, strict=False))
    entitled = [
        any(
            topic.admits(event.channel)
            and (event.counter if subjects.is_live(event.channel) else event.sequence) > floor
            for topic, floor in standing.items()
        )
        for event in events
    ]
    expected = [index for index, wanted in enumerate(entitled) if wanted and index >= after]
    for _ in range(2):  # the second time from what was remembered
        mask = tick.share(standing, after=after)
        assert list(ring.indices(mask)) == expected
    assert [index for index, bit in enumerate(ring.bits(mask)) if bit] == expected
    if mask:
        assert tick.join(mask) == b"".join(events[index].frame for index in expected)


@settings(deadline=None, max_examples=200)
@given(channels=EVENTS, deleted=st.sets(st.integers(8, 60)), parts=st.integers(1, 4), merge=st.booleans())
def test_what_was_deleted_is_in_no_share(
    channels: list[tuple[str, int]], deleted: set[int], parts: int, merge: bool
) -> None:
    """Whatever the topic, also after ticks have become one. Live events stay; what was freed is counted."""
    events = make_events(channels, counter=20, base=10)
    topics = [Topic(">", (), 1), Topic("live.>", (), 2), Topic("a", (), 3), Topic("users.u.>", (), 4)]
    held = Ring(config.Ring(), floor=19, floor_head=10)
    size = -(-len(events) // parts)
    for start in range(0, len(events), size):
        base = events[start - 1].sequence if start else 10
        held.add(make_tick(events[start : start + size], topics[:2], base=base, known=Known(topics)))
    before = held.size
    held.blank(Ranges.of(sorted(deleted)), but=None)
    held.blank(Ranges.of(sorted(deleted)), but=None)
    if merge:
        held.merge()
    left = [event for event in events if subjects.is_live(event.channel) or event.sequence not in deleted]
    for topic in topics:
        shares = [(tick, tick.share({topic: 0})) for tick in held.after(19)]
        found = [tick.join(mask) for tick, mask in shares if mask]
        wanted = [event.frame for event in left if topic.admits(event.channel)]
        assert b"".join(found) == b"".join(wanted)
    assert held.size == before - sum(len(event.frame) for event in events if event not in left)
    assert sum(tick.size for tick in held.after(19)) == held.size


def test_the_tick_that_is_being_sent_is_left_alone() -> None:
    """Who has not got it yet would hear of no gap."""
    events = make_events([("a", 0), ("b", 0)], counter=20, base=10)
    held = Ring(config.Ring(), floor=19, floor_head=10)
    tick = make_tick(events, [], base=10)
    held.add(tick)
    held.blank(Ranges.of([11]), but=tick)
    assert tick.frames == [event.frame for event in events]


def test_every_floor() -> None:
    """A floor is a position for stored events and a counter for live ones, and lies before what is shared."""
    events = make_events([("a", 0), ("a", 1), ("live.a", 0), ("a", 0), ("live.a", 0)], counter=20, base=10)
    assert [event.sequence for event in events] == [11, 13, 13, 14, 14]
    stored, live = Topic("a", (), 1), Topic("live.a", (), 2)
    tick = make_tick(events, [stored, live], base=10)
    for position, mask in ((9, 0b01011), (10, 0b01011), (11, 0b01010), (12, 0b01010), (13, 0b01000), (14, 0)):
        assert tick.share({stored: position}) == mask
    for counter, mask in ((19, 0b10100), (21, 0b10100), (22, 0b10000), (23, 0b10000), (24, 0), (99, 0)):
        assert tick.share({live: counter}) == mask


def test_a_topic_that_the_tick_knows_and_did_not_match_stays_without() -> None:
    """A topic older than the tick is never worked out again: the trie has said what it matched."""
    old, young = Topic("*", (), 5), Topic("*", (), 6)
    tick = make_tick(make_events([("a", 0)], counter=1, base=0), [], base=0, known=Known([old, young]))
    tick.serial = 5
    assert tick.mask(old) == 0
    assert tick.mask(young) == 1
    assert tick.mask(old) == 0


@settings(deadline=None)
@given(mask=st.integers(0, 2**130))
def test_bits(mask: int) -> None:
    """The two ways to name the events of a mask agree with each other and with it."""
    assert sum(1 << index for index in ring.indices(mask)) == mask
    assert list(ring.indices(mask)) == [index for index, bit in enumerate(ring.bits(mask)) if bit]


ACTIONS = st.lists(
    st.tuples(st.just("add"), EVENTS, st.floats(0, 3))
    | st.tuples(st.just("expire"), st.floats(0, 8))
    | st.tuples(st.just("drop")),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(
    actions=ACTIONS,
    bounds=st.builds(
        config.Ring,
        events=st.integers(1, 40),
        bytes=st.sampled_from([1, 500, 3000, 10**6]),
        seconds=st.sampled_from([0.5, 5.0, 1000.0]),
    ),
)
def test_ring_is_a_list_that_forgets(actions: list[tuple[Any, ...]], bounds: config.Ring) -> None:
    """`after` and `cursor` are what a walk over the list of kept ticks gives; the bounds hold."""
    now, count, head = 0.0, 7, 50
    held = Ring(bounds, floor=count, floor_head=head)
    twin: list[Tick] = []
    floor, floor_head = count, head
    for kind, *rest in actions:
        if kind == "add":
            now += rest[1]
            events = make_events(rest[0], counter=count + 1, base=head)
            tick = make_tick(events, [], base=head, time=now)
            count, head = tick.last, tick.head
            held.add(tick)
            twin.append(tick)
        elif kind == "expire":
            now += rest[0]
            held.expire(now)
        elif twin:
            held.drop()
            floor, floor_head = twin[0].last, twin.pop(0).head

        def over(ticks: list[Tick]) -> bool:
            size = sum(each.size for each in ticks)
            return size > bounds.bytes or sum(len(each.frames) for each in ticks) > bounds.events

        while (kind == "add" and over(twin) and len(twin) > 1) or (
            kind != "drop" and twin and twin[0].time < now - bounds.seconds
        ):
            floor, floor_head = twin[0].last, twin.pop(0).head
        assert (held.floor, held.floor_head) == (floor, floor_head)
        assert held.statistics() == ring.RingStatistics(
            ticks=len(twin),
            events=sum(len(each.frames) for each in twin),
            size=sum(each.size for each in twin),
        )
        for cursor in range(floor, count + 1):
            assert held.after(cursor) == [each for each in twin if each.last > cursor]
        for position in range(floor_head, head + 2):
            check_cursor(held, twin, position, floor, count)


def check_cursor(held: Ring, twin: list[Tick], position: int, floor: int, count: int) -> None:
    """All stored events up to the position are at or before the cursor, all others after it."""
    cursor = held.cursor(position)
    assert floor <= cursor <= count
    for tick in twin:
        for index, sequence in enumerate(tick.sequences):
            if not subjects.is_live(tick.channels[index]):
                assert (tick.first + index <= cursor) == (sequence <= position)


@settings(deadline=None, max_examples=200)
@given(runs=st.lists(st.tuples(EVENTS, TOPICS), min_size=1, max_size=5), data=st.data())
def test_merged_ticks_are_what_they_were(
    runs: list[tuple[list[tuple[str, int]], list[tuple[str, tuple[str, ...]]]]], data: st.DataObject
) -> None:
    """The same events for every reader, also where topics were born between the ticks."""
    topics: list[Topic] = []
    ticks: list[Tick] = []
    known = Known()
    count, head = 7, 50
    for channels, wanted in runs:
        topics += [Topic(pattern, deny, len(topics) + at + 1) for at, (pattern, deny) in enumerate(wanted)]
        events = make_events(channels, counter=count + 1, base=head)
        ticks.append(make_tick(events, topics, base=head, known=known))
        count, head = ticks[-1].last, ticks[-1].head
    known.topics, known.serial = topics, len(topics)
    floors = {topic: data.draw(st.integers(0, head + 1)) for topic in topics}
    apart = b"".join(tick.join(mask) for tick in ticks if (mask := tick.share(floors)))
    tick = ring.merged(ticks)
    assert (tick.first, tick.last, tick.base, tick.head) == (8, count, 50, head)
    assert tick.size == sum(each.size for each in ticks)
    mask = tick.share(floors)
    assert (tick.join(mask) if mask else b"") == apart


def test_a_quiet_tenants_ticks_are_merged() -> None:
    """Thousands of ticks of one event become few, and the ring finds its way in them; large ones stay."""
    held = Ring(config.Ring(events=8192), floor=0, floor_head=0)
    for number in range(1, 5001):
        held.add(make_tick([Event(number, number, "a", b"%d," % number)], [], base=number - 1))
        for cursor in (0, number - 1, number - 40):
            if cursor >= 0:
                ticks = held.after(cursor)
                assert ticks[0].first <= cursor + 1 <= ticks[0].last
                assert ticks[-1].last == number
    assert held.statistics().events == 5000
    assert held.statistics().ticks <= 5000 / ring.LOOSE + ring.LOOSE
    assert b"".join(frame for tick in held.after(0) for frame in tick.frames).startswith(b"1,2,3,")
    assert [held.cursor(position) for position in (1, 31, 32, 33, 4999, 5000)] == [1, 31, 32, 33, 4999, 5000]
    large = make_tick(make_events([("a", 0)] * 20, counter=5001, base=5000), [], base=5000)
    held.add(large)
    assert held.after(5000) == [large]
    for number in range(5021, 5121):  # few events, and many bytes
        held.add(make_tick([Event(number, number, "a", b"x" * 5000)], [], base=number - 1))
    assert all(tick.size < 6000 for tick in held.after(5020))


def test_what_is_gone_is_let_go() -> None:
    """Over any time the ring holds little more than its bound, and still finds its way."""
    held = Ring(config.Ring(events=10), floor=0, floor_head=0)
    for number in range(1, 1001):
        held.add(make_tick([Event(number, number, "a", b"")], [], base=number - 1))
        assert len(held.ticks) <= 10 + 66
    assert [tick.first for tick in held.after(held.cursor(995))] == [996, 997, 998, 999, 1000]


def test_the_newest_tick_stays_however_large() -> None:
    """It is being sent: who falls behind in the middle of it reads on in the ring."""
    held = Ring(config.Ring(events=1, bytes=1), floor=0, floor_head=0)
    tick = make_tick(make_events([("a", 0)] * 5, counter=1, base=0), [], base=0)
    held.add(tick)
    assert held.after(0) == [tick]
    later = make_tick(make_events([("a", 0)] * 5, counter=6, base=5), [], base=5)
    held.add(later)
    assert held.after(5) == [later]
    assert (held.floor, held.floor_head) == (5, 5)


def test_a_tick_is_routed_once_for_many_young_topics() -> None:
    """Many young patterns cost one look at each channel, and a room without events costs none."""
    topics = [Topic(f"*.{number}", (), number + 1) for number in range(50)] + [Topic("users.w.>", (), 51)]
    known = Known(topics)
    events = make_events([("a.1", 0), ("a.2", 0), ("a.1", 0), ("users.u.i", 0)], counter=1, base=0)
    tick = make_tick(events, [], base=0, known=known)
    assert tick.mask(topics[50]) == 0
    assert known.asked == []
    assert [tick.mask(topic) for topic in topics[:4]] == [0, 0b101, 0b10, 0]
    assert sorted(known.asked) == ["a.1", "a.2", "users.u.i"]
