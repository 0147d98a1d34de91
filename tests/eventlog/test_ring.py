"""Ticks and the ring, against lists of events looked at one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, subjects
from broker.eventlog import ring
from broker.eventlog.places import at, sequence_of
from broker.eventlog.ring import Ring, RingStatistics
from broker.eventlog.selection import Selection
from broker.eventlog.tick import OVERHEAD, Tick, bits, indices, merged, woven
from broker.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable

CHANNELS = ["a", "a.b", "b", "users.u.i", "users.w.i", "live.a", "live.users.u.i"]
PATTERNS = ["a", "a.>", ">", "*", "b", "users.u.>", "users.*.i", "live.>", "live.a", "live.users.u.>"]
DENIALS: list[tuple[str, ...]] = [(), ("a.b",), ("a", "users.w.>"), (">",)]


@attrs.frozen
class Event:
    """One event as a naive reader knows it."""

    place: int
    channel: str
    frame: bytes

    @property
    def stored(self) -> bool:
        return not subjects.is_live(self.channel)


@attrs.define(eq=False)
class Known:
    """All selections that there are, as a log knows them; `asked` has the channels that were looked up."""

    selections: list[Selection] = attrs.Factory(list)
    asked: list[str] = attrs.Factory(list)
    serial: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.serial = max((selection.serial for selection in self.selections), default=0)

    def of(self, channel: str) -> list[Selection]:
        self.asked.append(channel)
        return [selection for selection in self.selections if selection.admits(channel)]


def make_tick(
    events: list[Event],
    selections: list[Selection],
    *,
    base: int,
    time: float = 0.0,
    known: Known | None = None,
) -> Tick:
    """A tick that knows the given selections, its masks worked out event by event."""
    masks: dict[Selection, int] = {}
    for selection in selections:
        for bit, event in enumerate(events):
            if selection.admits(event.channel):
                masks[selection] = masks.get(selection, 0) | 1 << bit
    return Tick(
        base=base,
        head=events[-1].place,
        places=[event.place for event in events],
        channels=[event.channel for event in events],
        frames=[event.frame for event in events],
        masks=masks,
        serial=max((selection.serial for selection in selections), default=0),
        matcher=known or Known(selections),
        time=time,
    )


def make_events(channels: list[tuple[str, int]], *, base: int) -> list[Event]:
    """One event a channel, each with the number of other tenants' events that came before it."""
    found: list[Event] = []
    for channel, others in channels:
        base = base + 1 if subjects.is_live(channel) else at(sequence_of(base) + others + 1)
        found.append(Event(base, channel, b"<%x>" % base))
    return found


def make_selections(wanted: list[tuple[str, tuple[str, ...]]], *, serial: int = 0) -> list[Selection]:
    return [Selection(pattern, deny, serial + n) for n, (pattern, deny) in enumerate(wanted, 1)]


def read(ticks: Iterable[Tick], selections: Iterable[Selection], **limits: Any) -> list[bytes]:
    """All frames of the ticks for some selections."""
    wanted = list(selections)
    return [frame for tick in ticks for frame in tick.select(tick.share(wanted, **limits))]


EVENTS = st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 3)), min_size=1, max_size=12)
SELECTIONS = st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from(DENIALS)), max_size=6)


def near(events: list[Event], *, base: int) -> st.SearchStrategy[int]:
    """The places of events, those beside them, and those before and after all of them."""
    found = {0, base, at(sequence_of(events[-1].place) + 2)}
    for event in events:
        found |= {event.place - 1, event.place, event.place + 1, at(sequence_of(event.place))}
    return st.sampled_from(sorted(found))


@settings(deadline=None, max_examples=300)
@given(channels=EVENTS, wanted=SELECTIONS, base=st.sampled_from([at(10), at(10) + 7]), data=st.data())
def test_share_is_what_one_by_one_would_be(
    channels: list[tuple[str, int]],
    wanted: list[tuple[str, tuple[str, ...]]],
    base: int,
    data: st.DataObject,
) -> None:
    """The union of all selections, each above its floor, whether one is older or younger than the tick."""
    events = make_events(channels, base=base)
    places = near(events, base=base)
    selections = make_selections(wanted)
    old = data.draw(st.integers(0, len(selections)), label="selections that the tick knows")
    floors = {each: data.draw(places) for each in selections if data.draw(st.booleans())}
    after, upto = data.draw(places, label="after"), data.draw(st.none() | places, label="upto")
    tick = make_tick(events, selections[:old], base=base, known=Known(selections))
    expected = [
        index
        for index, event in enumerate(events)
        if after < event.place
        and (upto is None or event.place <= upto)
        and any(each.admits(event.channel) and event.place > floors.get(each, 0) for each in selections)
    ]
    for _ in range(2):  # the second time from what was remembered
        mask = tick.share(selections, floors, after=after, upto=upto)
        assert list(indices(mask)) == expected
    assert [index for index, bit in enumerate(bits(mask)) if bit] == expected
    assert list(tick.select(mask)) == [events[index].frame for index in expected]
    if mask:
        assert tick.join(mask) == b"".join(events[index].frame for index in expected)


@settings(deadline=None, max_examples=200)
@given(channels=EVENTS, deleted=st.sets(st.integers(8, 60)), parts=st.integers(1, 4), merge=st.booleans())
def test_what_was_deleted_is_in_no_share(
    channels: list[tuple[str, int]], deleted: set[int], parts: int, merge: bool
) -> None:
    """Whatever the selection, also after ticks have become one. Unstored ones stay; what was freed counts."""
    events = make_events(channels, base=at(10))
    selections = make_selections([(">", ()), ("live.>", ()), ("a", ()), ("users.u.>", ())])
    held = Ring(config.Ring(), floor=at(10))
    size = -(-len(events) // parts)
    for start in range(0, len(events), size):
        base = events[start - 1].place if start else at(10)
        held.add(make_tick(events[start : start + size], selections[:2], base=base, known=Known(selections)))
    before = held.size
    held.blank(Ranges.of(sorted(deleted)), but=None)
    held.blank(Ranges.of(sorted(deleted)), but=None)
    if merge:
        held.merge()
    left = [event for event in events if not event.stored or sequence_of(event.place) not in deleted]
    for selection in selections:
        wanted = [event.frame for event in left if selection.admits(event.channel)]
        assert read(held.after(at(10)), [selection]) == wanted
    assert held.size == before - sum(len(event.frame) for event in events if event not in left)
    assert sum(tick.size for tick in held.after(at(10))) == held.size


def test_the_tick_that_is_being_sent_is_left_alone() -> None:
    """Who has not got it yet would hear of no gap."""
    events = make_events([("a", 0), ("b", 0)], base=at(10))
    held = Ring(config.Ring(), floor=at(10))
    tick = make_tick(events, [], base=at(10))
    held.add(tick)
    held.blank(Ranges.of([11]), but=tick)
    assert tick.frames == [event.frame for event in events]


def test_every_floor() -> None:
    """A floor is a place, which stored and unstored events share, and lies before what is given."""
    events = make_events([("a", 0), ("a", 1), ("live.a", 0), ("a", 0), ("live.a", 0)], base=at(10))
    assert [event.place for event in events] == [at(11), at(13), at(13) + 1, at(14), at(14) + 1]
    stored, unstored = make_selections([("a", ()), ("live.a", ())])
    tick = make_tick(events, [stored, unstored], base=at(10))
    for position, mask in ((9, 0b01011), (10, 0b01011), (11, 0b01010), (12, 0b01010), (13, 0b01000), (14, 0)):
        assert tick.share([stored], {stored: at(position)}) == mask
        assert tick.share([stored], after=at(position)) == mask
    for place, mask in (
        (0, 0b10100),
        (at(10), 0b10100),
        (at(13), 0b10100),
        (at(13) + 1, 0b10000),
        (at(14), 0b10000),
        (at(14) + 1, 0),
        (at(99), 0),
    ):
        assert tick.share([unstored], {unstored: place}) == mask
        assert tick.share([unstored], after=place) == mask
        assert tick.share([stored, unstored], {unstored: place}) == mask | 0b01011, "another one's floor"


def test_a_selection_that_the_tick_knows_and_did_not_match_stays_without() -> None:
    """A selection older than the tick is never worked out again: the trie has said what it matched."""
    old, young = Selection("*", (), 5), Selection("*", (), 6)
    tick = make_tick(make_events([("a", 0)], base=0), [], base=0, known=Known([old, young]))
    tick.serial = 5
    assert tick.mask(old) == 0
    assert tick.mask(young) == 1
    assert tick.mask(old) == 0


def test_a_tick_that_moves_to_another_log() -> None:
    """It knows none of the selections there, whatever their serials, and works them out anew."""
    before, after = Selection("*", (), 5), Selection("b", (), 1)
    tick = make_tick(make_events([("a", 0), ("b", 0)], base=0), [before], base=0)
    assert tick.mask(after) == 0
    tick.move(Known([after]))
    assert tick.mask(after) == 0b10
    assert tick.mask(before) == 0


@settings(deadline=None)
@given(mask=st.integers(0, 2**130))
def test_bits(mask: int) -> None:
    """The two ways to name the events of a mask agree with each other and with it."""
    assert sum(1 << index for index in indices(mask)) == mask
    assert list(indices(mask)) == [index for index, bit in enumerate(bits(mask)) if bit]


ACTIONS = st.lists(
    st.tuples(st.just("add"), EVENTS, st.floats(0, 3))
    | st.tuples(st.just("expire"), st.floats(0, 8))
    | st.tuples(st.just("drop"))
    | st.tuples(st.just("quiet"), st.integers(1, 3)),
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
    """`after` is what a walk over the list of kept ticks gives; the bounds hold.

    Between ticks the tenant may be quiet while others are not: then a tick begins after the end of the last.
    """
    now, head = 0.0, at(50)
    held = Ring(bounds, floor=head)
    twin: list[Tick] = []
    floor = head
    every = make_selections([(">", ()), ("users.>", ()), ("live.>", ()), ("live.users.>", ())])
    for kind, *rest in actions:
        if kind == "add":
            now += rest[1]
            tick = make_tick(make_events(rest[0], base=head), every, base=head, time=now)
            head = tick.head
            held.add(tick)
            twin.append(tick)
        elif kind == "expire":
            now += rest[0]
            held.expire(now)
        elif kind == "quiet":
            head = at(sequence_of(head) + rest[0])
        elif twin:
            held.drop()
            floor = twin.pop(0).head

        def over(ticks: list[Tick]) -> bool:
            size = sum(each.size for each in ticks)
            return size > bounds.bytes or sum(len(each.frames) for each in ticks) > bounds.events

        while (kind == "add" and over(twin) and len(twin) > 1) or (
            kind in ("add", "expire") and twin and twin[0].time < now - bounds.seconds
        ):
            floor = twin.pop(0).head
        assert held.floor == floor
        assert held.oldest is (twin[0] if twin else None)
        assert held.statistics() == RingStatistics(
            ticks=len(twin),
            events=sum(len(each.frames) for each in twin),
            size=sum(each.size for each in twin),
        )
        positions = (at(each) for each in range(sequence_of(floor), sequence_of(head) + 2))
        for place in {*(place for tick in twin for place in tick.places), floor, head, *positions}:
            if place >= floor:
                assert held.after(place) == [each for each in twin if each.head > place]
    events = [pair for tick in twin for pair in zip(tick.places, tick.frames, strict=True)]
    for place in {floor, head, *(place for place, _ in events)}:
        wanted = [frame for at_place, frame in events if at_place > place]
        assert read(held.after(place), every, after=place) == wanted


@settings(deadline=None, max_examples=200)
@given(runs=st.lists(st.tuples(EVENTS, SELECTIONS), min_size=1, max_size=5), data=st.data())
def test_merged_ticks_are_what_they_were(
    runs: list[tuple[list[tuple[str, int]], list[tuple[str, tuple[str, ...]]]]], data: st.DataObject
) -> None:
    """The same events for every reader, also where selections were made between the ticks."""
    selections: list[Selection] = []
    ticks: list[Tick] = []
    events: list[Event] = []
    known = Known()
    head = at(50)
    for channels, wanted in runs:
        selections += make_selections(wanted, serial=len(selections))
        events += (fresh := make_events(channels, base=head))
        ticks.append(make_tick(fresh, selections, base=head, known=known))
        head = ticks[-1].head
    known.selections, known.serial = selections, len(selections)
    places = near(events, base=at(50))
    floors = {selection: data.draw(places) for selection in selections}
    after, upto = data.draw(places), data.draw(places)
    wanted_frames = [
        event.frame
        for event in events
        if after < event.place <= upto
        and any(each.admits(event.channel) and event.place > floors[each] for each in selections)
    ]
    routed = data.draw(st.booleans(), label="whether the ticks were asked before")
    for _ in range(routed):
        assert read(ticks, selections, floors=floors, after=after, upto=upto) == wanted_frames
    tick = merged(ticks)
    assert (tick.base, tick.head) == (at(50), head)
    assert tick.places == [event.place for event in events]
    assert tick.size == sum(each.size for each in ticks)
    assert read([tick], selections, floors=floors, after=after, upto=upto) == wanted_frames


@settings(deadline=None, max_examples=200)
@given(channels=EVENTS, wanted=SELECTIONS, data=st.data())
def test_woven_ticks_are_a_dict_of_their_events(
    channels: list[tuple[str, int]], wanted: list[tuple[str, tuple[str, ...]]], data: st.DataObject
) -> None:
    """Each event once, in order, in the range only, less what was deleted in any tick that has it."""
    events = make_events(channels, base=at(10))
    selections = make_selections(wanted)
    known = Known(selections)
    naive: dict[int, Event] = {}
    ticks: list[Tick] = []
    deleted: set[int] = set()
    for _ in range(data.draw(st.integers(1, 4), label="ticks")):
        some = [event for event in events if data.draw(st.booleans())] or events[:1]
        old = data.draw(st.integers(0, len(selections)))
        ticks.append(make_tick(some, selections[:old], base=0, known=known))
        naive |= {event.place: event for event in some}
        if gone := data.draw(st.sets(st.integers(8, 60), max_size=8)):
            ticks[-1].blank(Ranges.of(sorted(gone)))
            deleted |= {each.place for each in some if each.stored and sequence_of(each.place) in gone}
    places = near(events, base=at(10))
    after, upto = sorted((data.draw(places), data.draw(places)))
    left = [naive[place] for place in sorted(naive) if after < place <= upto and place not in deleted]
    tick = woven(ticks, after=after, upto=upto)
    assert (tick.base, tick.head, tick.gone) == (after, upto, 0)
    assert tick.places == [event.place for event in left]
    assert tick.channels == [event.channel for event in left]
    assert tick.frames == [event.frame for event in left]
    assert tick.size == sum(len(event.frame) + OVERHEAD for event in left)
    for selection in selections:
        got = [left[index] for index in indices(tick.mask(selection))]
        assert got == [event for event in left if selection.admits(event.channel)]


def one(sequence: int, body: bytes = b"") -> Tick:
    return make_tick([Event(at(sequence), "a", body)], [], base=at(sequence - 1))


def test_a_quiet_tenants_ticks_are_merged() -> None:
    """Thousands of ticks of one event become few, and the ring finds its way in them; large ones stay."""
    held = Ring(config.Ring(events=8192), floor=0)
    for number in range(1, 5001):
        held.add(one(number, b"%d," % number))
        for position in (0, number - 1, number - 40):
            if position >= 0:
                ticks = held.after(at(position))
                assert ticks[0].base <= at(position) < ticks[0].head
                assert ticks[-1].places[-1] == at(number)
    assert held.statistics().events == 5000
    assert held.statistics().ticks <= 5000 / ring.LOOSE + ring.LOOSE
    assert b"".join(frame for tick in held.after(0) for frame in tick.frames).startswith(b"1,2,3,")
    for position in (1, 31, 32, 33, 4999):
        tick = held.after(at(position))[0]
        assert tick.places[tick.before(at(position))] == at(position + 1)
    assert held.after(at(5000)) == []
    large = make_tick(make_events([("a", 0)] * 20, base=at(5000)), [], base=at(5000))
    held.add(large)
    assert held.after(at(5000)) == [large]
    for number in range(5021, 5121):  # few events, and many bytes
        held.add(one(number, b"x" * 5000))
    assert all(tick.size < 6000 for tick in held.after(at(5020)))


def test_what_is_gone_is_let_go() -> None:
    """Over any time the ring holds little more than its bound, and still finds its way."""
    held = Ring(config.Ring(events=10), floor=0)
    for number in range(1, 1001):
        held.add(one(number))
        assert len(held.ticks) <= 10 + 66
        assert len(held.heads) == len(held.ticks)
    assert [tick.places for tick in held.after(at(995))] == [[at(each)] for each in range(996, 1001)]


def test_the_newest_tick_stays_however_large() -> None:
    """It is being sent: who falls behind in the middle of it reads on in the ring."""
    held = Ring(config.Ring(events=1, bytes=1), floor=0)
    tick = make_tick(make_events([("a", 0)] * 5, base=0), [], base=0)
    held.add(tick)
    assert held.after(0) == [tick]
    later = make_tick(make_events([("a", 0)] * 5, base=at(5)), [], base=at(5))
    held.add(later)
    assert held.after(at(5)) == [later]
    assert held.floor == at(5)


def test_a_tick_is_routed_once_for_many_young_selections() -> None:
    """Many young patterns cost one look at each channel, and a room without events costs none."""
    selections = make_selections([*((f"*.{number}", ()) for number in range(50)), ("users.w.>", ())])
    known = Known(selections)
    events = make_events([("a.1", 0), ("a.2", 0), ("a.1", 0), ("users.u.i", 0)], base=0)
    tick = make_tick(events, [], base=0, known=known)
    assert tick.mask(selections[50]) == 0
    assert known.asked == []
    assert [tick.mask(selection) for selection in selections[:4]] == [0, 0b101, 0b10, 0]
    assert sorted(known.asked) == ["a.1", "a.2", "users.u.i"]
