"""The log: whatever comes after a place, from wherever it is, and each tick dealt to those that want it."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from broker import config, filters, subjects
from broker.eventlog import history
from broker.eventlog.log import TICK_EVENTS, EventLog, Missing, Page
from broker.eventlog.places import at, sequence_of
from broker.eventlog.tick import indices
from broker.metrics.meters import RING, STREAM
from broker.ranges import Ranges
from broker.subjects import BROADCAST
from broker.wire import frames
from tests.eventlog.stream import BAD, NAMES, Feed, Stream, check, make_log
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest

    from broker.eventlog.history import Checked
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.wire.frames import Framing

CHANNELS = ["a", "a.b", "a.c", "b", "users.u.i", "users.w.i", "live.a", "live.users.u.i"]
PATTERNS = ["a", "a.>", "*", ">", "*.b", "users.u.>", "b", "a.*", "users.*.i", "live.>", "live.a", "n"]
FILTERS = [None] * 3 + [filters.parse(each) for each in ({"": 1}, {"": {"prefix": "x"}}, {"": {"gt": 1}})]
DENIALS: list[tuple[str, ...]] = [(), (), ("a.b",), ("*.b", "a")]


@attrs.define(eq=False)
class World:
    """A tenant's log with the stream behind it, and of each event its place, channel and frame."""

    random: random.Random
    bus: Stream = attrs.field(init=False)
    feed: Feed = attrs.Factory(Feed)
    bounds: config.Ring = attrs.Factory(config.Ring)
    log: EventLog = attrs.field(init=False)
    events: list[tuple[int, str, bytes]] = attrs.Factory(list)
    selections: list[Selection] = attrs.Factory(list)

    def __attrs_post_init__(self) -> None:
        self.bus = Stream(random=self.random, missing=self.random.choice((0, 10, 25)))
        self.log = make_log(
            self.bus,
            bounds=self.bounds,
            feed=self.feed,
            at_once=self.random.choice((1, 8)),
            remembered=partial(self.bus.remembered, "acme"),
        )

    def append(self, count: int) -> Tick | None:
        """So many more events of everybody; those that are the tenant's come into its log."""
        records: list[Checked] = []
        place = self.log.head
        places: list[int] = []
        for _ in range(count):
            channel = self.random.choice(CHANNELS)
            if subjects.is_live(channel):
                place += 1
                records.append((channel, (0, f"live.acme.{channel[5:]}", b"%d" % place, None)))
            else:
                tenant = self.random.choice(("acme", "acme", BROADCAST, "other"))
                body = self.random.choice((b"1", b'"%s"' % (b"x" * 200), BAD))
                self.bus.fill([channel], tenant=tenant, body=body)
                record = self.bus.records[-1]
                event = check(record)
                if event is None or tenant == "other":
                    continue
                place = at(record[0])
                records.append(event)
            places.append(place)
        if not records:
            return None
        tick = self.log.append(records)
        self.log.finish()
        channels = [channel for channel, _ in records]
        self.events += zip(places, channels, list(tick.frames), strict=True)
        return tick

    def go_on(self) -> None:
        """Something happens: events, a quiet while, a ring that is made shorter, somebody who asks."""
        kind = self.random.random()
        if kind < 0.6:
            self.append(self.random.choice((1, 2, 5, 20)))
        elif kind < 0.7:
            self.feed.quiet = self.bus.last_sequence
            self.log.end()
            self.feed.quiet = None
        elif kind < 0.8 and self.log.ring.oldest:
            self.log.ring.drop()
        else:
            self.select()

    def select(self) -> Selection:
        pattern = self.random.choice(PATTERNS)
        denials = [deny for deny in self.random.choice(DENIALS) if subjects.overlaps(deny, pattern)]
        wanted = self.random.choice(FILTERS)
        self.selections.append(self.log.acquire(pattern, tuple(denials), wanted))
        return self.selections[-1]

    def place(self) -> int:
        """Any place up to the head: an event's, one beside it, or a position."""
        head = self.log.head
        around = [place + step for place, _, _ in self.events for step in (-1, 0, 0, 1)]
        around += [at(self.random.randint(0, sequence_of(head))), 0, head, self.log.ring.floor]
        return min(head, max(0, self.random.choice(around)))

    def delete(self) -> None:
        """Take some events out of the stream, and out of the log."""
        stored = [record[0] for record in self.bus.records]
        gone = Ranges.of(sorted(self.random.sample(stored, min(len(stored), 3))))
        self.bus.delete([each for each in stored if each in gone])
        self.log.drop(gone)
        self.log.history.blank(gone)

    def matching(
        self, selections: Sequence[Selection], floors: Mapping[Selection, int], after: int, upto: int
    ) -> list[tuple[int, str, bytes]]:
        """What there ever was of them after a place up to another, one by one."""
        return [
            (place, channel, frame)
            for place, channel, frame in self.events
            if after < place <= upto
            and any(takes(each, channel, frame) and place > floors.get(each, 0) for each in selections)
        ]


def takes(selection: Selection, channel: str, frame: bytes) -> bool:
    """Whether a selection has an event, with its filter asked about this one alone."""
    passes = selection.filter is None or selection.filter.passes(
        json.loads(frames.payload(frame))["payload"]["event"]
    )
    return passes and selection.admits(channel)


def contents(page: Page) -> list[tuple[int, str, bytes]]:
    """The events of a page, which are in order."""
    found = []
    for tick, mask in page.shares:
        assert mask, "an empty share"
        assert tick.join(mask) == b"".join(tick.frames[index] for index in indices(mask))
        found += [(tick.places[i], tick.channels[i], tick.frames[i]) for i in indices(mask)]
    places = [place for place, _, _ in found]
    assert places == sorted(set(places))
    return found


async def walk(
    log: EventLog,
    selections: tuple[Selection, ...],
    after: int,
    upto: int,
    *,
    floors: Mapping[Selection, int] | None = None,
    budget: int | None = 1000,
    seen: Callable[[int, Page], None] = lambda *_: None,
) -> list[tuple[int, str, bytes]]:
    """All that a reader is given, page by page. `Missing` is answered below the ring, until it is fetched."""
    found: list[tuple[int, str, bytes]] = []
    while after < upto:
        page = log.read(selections, after, upto, floors=floors, budget=budget)
        if isinstance(page, Missing):
            assert sequence_of(after) < sequence_of(log.ring.floor)
            assert page == Missing(selections, sequence_of(after))
            await log.history.fetch(page.selections, page.after)
            page = log.read(selections, after, upto, floors=floors, budget=budget)
        assert isinstance(page, Page), "what was waited for is not there"
        assert after < page.end <= upto, "no progress"
        assert all(after < place <= page.end for place, _, _ in contents(page))
        assert not page.lost or not page.shares
        seen(after, page)
        found += contents(page)
        after = page.end
        await trio.lowlevel.checkpoint()
    assert after == upto
    return found


@simulated(50)
async def test_a_walk_is_a_naive_list(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any place to any other: each stored event once, in order, and of unstored what the ring has.

    Selections are older and younger than the events, and have floors; the ring goes on and is trimmed
    meanwhile, and events are deleted, which nobody is given from then on.
    """
    rng = random.Random(seed)
    monkeypatch.setattr(history, "PAGE_EVENTS", rng.choice((1, 3, 50)))
    monkeypatch.setattr(history, "KEPT_BYTES", rng.choice((0, 3000, 10**7)))
    world = World(rng, bounds=config.Ring(events=rng.choice((5, 40, 8192)), bytes=rng.choice((3000, 10**6))))
    world.select()
    for _ in range(rng.choice((3, 30, 100))):
        world.go_on()
    deletes = rng.random() < 0.3
    walking = True

    async def change() -> None:
        while walking:
            await trio.sleep(rng.uniform(0, 0.2))
            world.go_on()
            if deletes and rng.random() < 0.3:
                world.delete()

    async def reader() -> None:
        log = world.log
        selections = tuple(dict.fromkeys(rng.choices(world.selections, k=rng.randint(1, 5))))
        floors = {each: world.place() for each in selections if rng.random() < 0.3}
        after, upto = sorted((world.place(), world.place()))
        wanted = world.matching(selections, floors, after, upto)

        def seen(_: int, page: Page) -> None:
            given = [place for place, _, _ in contents(page)]
            assert not any(sequence_of(each) in world.bus.deleted for each in given if each in stored)

        stored = {place for place, channel, _ in wanted if not subjects.is_live(channel)}
        budget = rng.choice((1, 300, 10**5, None))
        found = await walk(log, selections, after, upto, floors=floors or None, budget=budget, seen=seen)
        assert set(found) <= set(wanted)
        for place, channel, frame in set(wanted) - set(found):
            if place in stored:
                assert sequence_of(place) in world.bus.deleted, (place, channel, frame)
            else:
                assert place <= log.ring.floor, "it was in the ring all the time"
        assert found == sorted(found)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        async with trio.open_nursery() as readers:
            for _ in range(rng.randint(1, 6)):
                readers.start_soon(reader)
        walking = False
    log = world.log
    kept = [each for segments in log.history.kept.values() for each in segments]
    assert log.history.size == sum(each.size for each in kept)


@simulated(10)
async def test_a_stream_that_was_trimmed(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone below the ring is lost up to where the stream begins; the ring gives what it has."""
    rng = random.Random(seed)
    monkeypatch.setattr(history, "PAGE_EVENTS", rng.choice((1, 3, 50)))
    world = World(rng, bounds=config.Ring(events=rng.choice((5, 40))))
    selections = tuple(dict.fromkeys(world.select() for _ in range(rng.randint(1, 3))))
    while world.log.ring.floor < at(60):
        world.append(rng.choice((1, 5, 20)))
    log, floor = world.log, world.log.ring.floor
    first = rng.choice((1, 30, sequence_of(floor), sequence_of(floor) + 1, world.bus.last_sequence + 1))
    world.bus.trim(first)
    trimmed = min(first - 1, sequence_of(floor))
    lost: list[int] = []

    def seen(after: int, page: Page) -> None:
        assert page.source == (RING if sequence_of(after) >= sequence_of(floor) else STREAM)
        if page.lost:
            lost.append(page.end)

    for _ in range(10):
        lost.clear()
        after, upto = sorted((world.place(), world.place()))
        found = await walk(log, selections, after, upto, seen=seen)
        wanted = [
            event
            for event in world.matching(selections, {}, after, upto)
            if event[0] > floor or (event[0] > at(trimmed) and not subjects.is_live(event[1]))
        ]
        begins_in_ring = sequence_of(after) >= sequence_of(floor)
        if begins_in_ring:
            wanted = [event for event in wanted if event[0] > floor]
        assert found == wanted
        if begins_in_ring or sequence_of(after) >= trimmed or after == upto:
            assert lost == []
        else:
            assert lost == [min(at(trimmed), upto)]


async def test_missing_until_it_was_fetched(autojump_clock: trio.abc.Clock) -> None:
    """And only for those who ask for what was fetched, as far as that reaches."""
    world = World(random.Random(1), bounds=config.Ring(events=1))
    one, other = world.log.acquire("a", ()), world.log.acquire("b", ())
    for _ in range(20):
        world.append(5)
    log, floor = world.log, world.log.ring.floor
    assert log.read((one,), 0, floor) == Missing((one,), 0)
    assert log.read((one,), 0, floor) == Missing((one,), 0), "asking is not fetching"
    await log.history.fetch((one,), 0)
    page = log.read((one,), 0, floor)
    assert isinstance(page, Page)
    assert (page.source, page.lost) == (STREAM, False)
    assert log.read((other,), 0, floor) == Missing((other,), 0)
    assert log.count((one,), None, 0) is None
    assert log.events_after(0) is None
    assert isinstance(log.read((one,), floor, log.head), Page)


async def test_a_reader_of_nothing(autojump_clock: trio.abc.Clock) -> None:
    """It is through at once, wherever it begins."""
    world = World(random.Random(1), bounds=config.Ring(events=1))
    for _ in range(20):
        world.append(5)
    log = world.log
    for after in (0, log.ring.floor):
        assert log.read((), after, log.head) == Page(end=log.head, shares=[])
    assert world.bus.reads == 0


async def test_a_page_is_about_a_budget(autojump_clock: trio.abc.Clock) -> None:
    """Ticks until that is reached; with none, all that is at hand."""
    world = World(random.Random(1))
    every = world.log.acquire(">", ())
    for number in range(10):
        world.bus.fill(["a"] * 20, body=b'"%d%s"' % (number, b"x" * 500))
        events = [event for record in world.bus.records[-20:] if (event := check(record))]
        world.log.append(events)
        world.log.finish()
    log = world.log
    ends = []
    after = 0
    while after < log.head:
        page = log.read((every,), after, log.head, budget=20_000)
        assert isinstance(page, Page)
        assert len(page.shares) == 2
        ends.append(sequence_of(after := page.end))
    assert ends == [40, 80, 120, 160, 200]
    whole = log.read((every,), 0, log.head, budget=None)
    assert isinstance(whole, Page)
    assert (whole.end, len(whole.shares)) == (log.head, 10)


@simulated(10)
async def test_counts(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """What is to come after a place in the ring; of what lies below it nothing is known."""
    world = World(random.Random(seed), bounds=config.Ring(events=40))
    world.select()
    for _ in range(40):
        world.go_on()
    log = world.log
    for _ in range(20):
        selections = tuple(dict.fromkeys(world.random.choices(world.selections, k=3)))
        floors = {selections[0]: world.place()}
        after = world.place()
        if sequence_of(after) < sequence_of(log.ring.floor):
            assert log.count(selections, floors, after) is log.events_after(after) is None
            continue
        held = [event for event in world.events if event[0] > log.ring.floor]
        wanted = world.matching(selections, floors, max(after, log.ring.floor), log.head)
        assert log.count(selections, floors, after) == len(wanted)
        assert log.events_after(after) == len([event for event in held if event[0] > after])


# --- writing ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Member:
    """One that gets shares; it is its own client."""

    framing: Framing | None = None
    user: str | None = None
    mask: int = 0
    got: bytes = b""
    errors: list[Exception] = attrs.Factory(list)

    @property
    def client(self) -> Member:
        return self

    def crashed(self, error: Exception) -> None:
        self.errors.append(error)


def framed(frame: bytes, _: bool) -> bytes:
    return b"[" + frame + b"]"


def broken(frame: bytes, _: bool) -> bytes:
    raise ValueError("not with me")


def records(*channels: str, first: int = 1) -> list[Checked]:
    found: list[Checked] = []
    sequence = first - 1
    for channel in channels:
        if subjects.is_live(channel):
            found.append((channel, (0, f"live.acme.{channel[5:]}", b"0", None)))
        else:
            sequence += 1
            found.append((channel, (sequence, NAMES.subject("acme", channel), b"%d" % sequence, None)))
    return found


@simulated(15)
async def test_a_tick_is_dealt_at_once(seed: int) -> None:
    """After `append` each member's share is that of all its selections, and equal shares go out as one."""
    rng = random.Random(seed)
    log = make_log(Stream())
    members = [Member(framing=rng.choice((None, None, framed))) for _ in range(rng.randint(1, 20))]
    joined: dict[Member, set[Selection]] = {member: set() for member in members}
    for member in members:
        for pattern in rng.sample(PATTERNS, rng.randint(0, 4)):
            selection = log.acquire(pattern, rng.choice(((), ("a.b",))))
            selection.members[member] = None
            joined[member].add(selection)
        if member.framing:
            log.framings[member.framing] += 1
    head = sequence_of(log.head)
    for _ in range(3):
        batch = records(*rng.choices(CHANNELS, k=rng.randint(1, 12)), first=head + 1)
        tick = log.append(batch)
        assert (log.running, log.head) == (tick, tick.head)
        assert log.ring.after(tick.base) == [tick], "who falls behind finds it there"
        head = sequence_of(tick.head)
        for member in members:
            bits = [
                index
                for index, (channel, _) in enumerate(batch)
                if any(each.admits(channel) for each in joined[member])
            ]
            assert list(indices(member.mask)) == bits
            frames = [framed(tick.frames[i], False) if member.framing else tick.frames[i] for i in bits]
            member.got = b"".join(frames)
        shares = list(log.shares(tick))
        dealt = [member for _, _, group in shares for member in group]
        assert len(dealt) == len(set(dealt))
        assert set(dealt) == {member for member in members if member.mask}
        for data, mask, group in shares:
            assert all(member.mask == mask and member.got == data for member in group)
            assert len({member.framing for member in group}) == 1
        kinds = [(mask, group[0].framing) for _, mask, group in shares]
        assert len(kinds) == len(set(kinds)), "equal shares are joined once"
        for index, (channel, _) in enumerate(batch):
            audience = [each for each in members if any(of.admits(channel) for of in joined[each])]
            assert log.audience(tick, index) == len(audience)
        for member in dealt:
            member.mask = 0
        log.finish()
        assert log.running is None


async def test_a_framing_that_breaks_is_its_members_alone() -> None:
    """They crash, each by itself; all others get theirs."""
    log = make_log(Stream())
    members = [Member(), Member(framing=broken), Member(framing=broken), Member(framing=framed)]
    selection = log.acquire("a", ())
    for member in members:
        selection.members[member] = None
    log.framings.update([broken, framed])
    tick = log.append(records("a"))
    given = {member: data for data, _, group in log.shares(tick) for member in group}
    assert given == {members[0]: tick.frames[0], members[3]: framed(tick.frames[0], False)}
    assert [len(member.errors) for member in members] == [0, 1, 1, 0]


async def test_what_is_deleted_while_a_tick_is_sent() -> None:
    """Older ticks are blanked at once, the running one when it is finished; nothing is forgotten."""
    log = make_log(Stream())
    selection = log.acquire("a", ())
    older = log.append(records("a", "a", "a"))
    log.finish()
    running = log.append(records("a", "a", "a", first=4))
    log.drop(Ranges.of([2, 5]))
    log.drop(Ranges.of([6]))
    assert older.share([selection]) == 0b101
    assert running.share([selection]) == 0b111
    log.finish()
    assert running.share([selection]) == 0b001
    assert older.share([selection]) == 0b101
    assert log.ring.size == older.size + running.size
    later = log.append(records("a", first=7))
    log.finish()
    assert later.share([selection]) == 0b1
    log.drop(Ranges.of([7]))
    assert later.share([selection]) == 0, "with nothing under way it is done at once"


async def test_the_end_stands_still_while_a_tick_is_sent() -> None:
    """Who is up to date goes on with a quiet tenant, and never past what it has not been given yet."""
    feed = Feed()
    log = make_log(Stream(), feed=feed)
    assert log.end() == 0
    feed.quiet = 10
    assert (log.end(), log.position(), log.text(10)) == (at(10), 10, "inc0-10")
    feed.quiet = 5
    assert log.end() == at(10), "nor backwards"
    feed.quiet = 20
    tick = log.append(records("a", "live.a", "live.a", first=15))
    assert (tick.base, tick.head) == (at(10), at(15) + 2)
    for _ in range(2):
        assert log.end() == tick.head
        list(log.shares(tick))
    log.finish()
    feed.quiet = 15
    assert log.end() == tick.head, "unstored events come after the position"
    feed.quiet = None
    assert log.end() == tick.head
    feed.quiet = 20
    assert log.end() == at(20)


async def test_a_selection_is_kept_as_long_as_it_is_used() -> None:
    """The same for equal wishes; after the last release another one, which younger ticks know."""
    log = make_log(Stream())
    one = log.acquire("a", ())
    assert log.acquire("a", ()) is one
    assert log.acquire("a", ("a.b",)) is not one
    log.release(one)
    assert list(log.append(records("a")).masks) == [one, *[s for s in log.of("a") if s is not one]]
    log.finish()
    log.release(one)
    assert one not in log.of("a")
    other = log.acquire("a", ())
    assert other is not one
    assert other.serial > one.serial
    log.release(one)  # once more, as by one that belonged to another log
    assert log.acquire("a", ()) is other


async def test_ticks_are_shorter_where_there_are_many_filters(autojump_clock: trio.abc.Clock) -> None:
    """Nobody else has a turn while filters are evaluated; a filter that several patterns have counts once."""
    log = World(random.Random(1)).log
    lengths = []
    for number in range(256):
        wanted = filters.parse({"": number})
        log.release(log.acquire("b", (), wanted))
        log.acquire("a", (), wanted)
        log.acquire("a.>", (), wanted)
        lengths.append(log.tick_events)
    assert (lengths[0], lengths[15], lengths[31], lengths[255]) == (TICK_EVENTS, TICK_EVENTS, 256, 32)
    for selection in list(log.selections.values()):
        log.release(selection)
    assert log.filters == {}


async def test_what_ended_leaves_nothing_in_the_ring(autojump_clock: trio.abc.Clock) -> None:
    """Masks are kept for those who have the selection, and no longer."""
    world = World(random.Random(1))
    world.append(20)
    selection = world.log.acquire(">", (), filters.parse({"": 1}))
    world.log.read((selection,), 0, world.log.head)
    assert any(selection in tick.masks for tick in world.log.ring.ticks)
    world.log.release(selection)
    assert not any(selection in tick.masks for tick in world.log.ring.ticks)


async def test_a_page_ends_where_much_was_looked_at(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What filters leave out is work too, with a budget and without."""
    world = World(random.Random(1))
    monkeypatch.setattr("broker.eventlog.log.FILTERED_BYTES", 1000)
    for _ in range(50):
        world.append(5)
    log = world.log
    selection = log.acquire(">", (), filters.parse({"": "nothing"}))
    for budget in (None, 10**6):
        after, pages = 0, 0
        while after < log.head:
            page = log.read((selection,), after, log.head, budget=budget)
            assert isinstance(page, Page)
            assert (page.shares, page.end > after) == ([], True)
            after, pages = page.end, pages + 1
        assert pages > 5
