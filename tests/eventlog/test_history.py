"""History: everything in a range, read once for all who want it, and the truth about what is gone."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import subjects
from broker.errors import Unavailable
from broker.eventlog import history as module
from broker.eventlog.history import filters, narrowed
from broker.eventlog.places import at, sequence_of
from broker.eventlog.selection import Selection
from broker.ranges import Ranges
from tests.eventlog.stream import BAD, NAMES, Stream, check, make_log, matching
from tests.support.scripted_keyed import matches
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from broker.bus.base import Page
    from broker.eventlog.history import Checked, History, Segment

CHANNELS = ["a", "a.b", "a.c", "b", "users.u.i", "users.w.i"]
PATTERNS = ["a", "a.>", "*", ">", "*.b", "users.u.>", "b", "a.*", "users.*.i"]


def make_history(
    bus: Stream,
    *,
    at_once: int = 8,
    below: int | None = None,
    remembered: Sequence[Checked] = (),
    memory: int | None = None,
) -> History:
    """A history below a ring that begins at the stream's end, or elsewhere."""
    log = make_log(
        bus,
        at_once=at_once,
        remembered=lambda after, upto: [event for event in remembered if after < event[1][0] <= upto],
        memory=lambda: memory,
    )
    log.history.below = lambda: bus.last_sequence if below is None else below
    return log.history


def selected(patterns: Iterable[str]) -> list[Selection]:
    return [Selection(pattern, (), serial) for serial, pattern in enumerate(patterns, 1)]


async def fetched(history: History, patterns: Iterable[str], *, after: int) -> Segment:
    """What follows a position. Who has waited for it finds it, or something is wrong."""
    selections = selected(patterns)
    found = history.find(selections, after)
    if found is None:
        await history.fetch(selections, after)
        found = history.find(selections, after)
    assert found is not None, "read, and not there"
    assert found.after <= after < found.upto <= history.below(), "no progress"
    return found


async def walk(history: History, patterns: list[str], *, after: int, below: int) -> list[tuple[int, str]]:
    """All of the range, segment by segment, as a log reads it: each event once, in order."""
    found: list[tuple[int, str]] = []
    while after < below:
        segment = await fetched(history, patterns, after=after)
        for place, channel in zip(segment.tick.places, segment.tick.channels, strict=True):
            if after < sequence_of(place) <= min(segment.upto, below):
                found.append((sequence_of(place), channel))
        after = segment.upto
    assert found == sorted(set(found))
    return found


@simulated(15)
async def test_a_walk_finds_each_event(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment by segment all events of the range, also for several readers that start at different places."""
    rng = random.Random(seed)
    monkeypatch.setattr(module, "PAGE_EVENTS", rng.choice((1, 3, 50)))
    monkeypatch.setattr(module, "KEPT_BYTES", rng.choice((0, 2000, 10**7)))
    bus = Stream(random=rng)
    for _ in range(rng.choice((0, 10, 150))):
        bus.fill([rng.choice(CHANNELS)], tenant=rng.choice(("acme", "acme", "_all", "other")))
        if rng.random() < 0.1:
            bus.fill([rng.choice(CHANNELS)], body=BAD)
    history = make_history(bus)

    async def reader() -> None:
        patterns = rng.sample(PATTERNS, rng.randint(1, len(PATTERNS)))
        after = rng.randint(0, bus.last_sequence)
        below = rng.randint(after, bus.last_sequence)
        found = await walk(history, patterns, after=after, below=below)
        for pattern in patterns:
            wanted = [each for each in matching(bus, {pattern: ()}) if after < each <= below]
            got = [sequence for sequence, channel in found if subjects.covers(pattern, channel)]
            assert got == wanted, (pattern, after, below)

    async with trio.open_nursery() as nursery:
        for _ in range(rng.randint(1, 6)):
            nursery.start_soon(reader)
    kept = [segment for segments in history.kept.values() for segment in segments]
    assert history.size == sum(segment.size for segment in kept)
    assert all(at(each.after) < place <= at(each.upto) for each in kept for place in each.tick.places)
    history.expire(trio.current_time() + 1000)
    assert (history.size, history.kept, len(history.order), len(history.locks)) == (0, {}, 0, 0)


@pytest.mark.parametrize("late", range(0, 40, 3))
async def test_late_replica(
    late: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica has not got yet, and does not miss, is filled in from what the feed has brought."""
    monkeypatch.setattr(module, "PAGE_EVENTS", 7)
    rng = random.Random(late)
    bus = Stream(random=rng)
    bus.fill([rng.choice(CHANNELS) for _ in range(40)])
    wanted = {pattern: matching(bus, {pattern: ()}) for pattern in PATTERNS}
    remembered = [event for record in bus.records[10:] if (event := check(record))]
    bus.records = bus.records[: max(10, 40 - late)]
    history = make_history(bus, remembered=remembered)
    for pattern in PATTERNS:
        found = await walk(history, [pattern], after=0, below=40)
        assert [sequence for sequence, channel in found if subjects.covers(pattern, channel)] == wanted[
            pattern
        ]


@pytest.mark.parametrize("size", [1, 40_000])
async def test_the_memory_needs_no_stream(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the feed remembers is found at once, in pages, for all selections the same, and without NATS."""
    monkeypatch.setattr(module, "PAGE_EVENTS", 7)
    bus = Stream()
    bus.fill(CHANNELS * 5, body=b"1" * size)
    remembered = [event for record in bus.records if record[0] > 10 and (event := check(record))]
    bus.failures = 1.0
    history = make_history(bus, below=27, remembered=remembered, memory=10)
    for pattern in PATTERNS:
        found = await walk(history, [pattern], after=10, below=27)
        wanted = [each for each in matching(bus, {pattern: ()}) if 10 < each <= 27]
        assert [sequence for sequence, channel in found if subjects.covers(pattern, channel)] == wanted
    assert history.find(selected(["a"]), 9) is None
    assert bus.asked == []
    assert set(history.kept) == {module.EVERYTHING}
    pages = history.kept[module.EVERYTHING]
    assert len(pages) == (3 if size == 1 else 5)
    history.blank(Ranges.of([11]))
    assert pages[0].tick.frames[0] == b""


async def test_many_readers_read_once(autojump_clock: trio.abc.Clock) -> None:
    """Two thousand clients that come back at once cost one read of each page, wherever each stands in it."""
    bus = Stream()
    bus.fill(["a"] * 1000)
    history = make_history(bus)
    async with trio.open_nursery() as nursery:
        for number in range(2000):
            nursery.start_soon(partial(walk, history, ["a"], after=number % 5, below=1000))
    distinct = len(bus.asked)
    pages = sum(len(segments) for wanted, segments in history.kept.items() if len(wanted) == 1)
    assert distinct == pages, "something was read that nobody kept"
    assert set(bus.asked) == {"events.acme.a", "events._all.a"}
    alone = make_history(other := Stream(random=random.Random(1), records=bus.records, last_sequence=1000))
    await walk(alone, ["a"], after=0, below=1000)
    assert distinct <= 3 * len(other.asked), "each of the five places to start from may have a first page"


async def test_what_was_read_is_kept_for_a_while(autojump_clock: trio.abc.Clock) -> None:
    """Within some seconds the same range costs nothing; later it is read anew."""
    bus = Stream()
    bus.fill(["a", "a.b"] * 10)
    history = make_history(bus)
    first = await walk(history, ["a"], after=0, below=20)
    reads = bus.reads
    assert await walk(history, ["a"], after=0, below=20) == first
    assert bus.reads == reads
    await walk(history, ["a"], after=bus.records[4][0], below=20)
    assert bus.reads == reads, "a later start lies within what was read"
    await trio.sleep(module.KEPT_SECONDS + 1)
    history.expire(trio.current_time())
    await walk(history, ["a"], after=0, below=20)
    assert bus.reads > reads


async def test_what_is_kept_is_bounded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the oldest is forgotten; what was read last is kept however large."""
    monkeypatch.setattr(module, "KEPT_BYTES", 5000)
    monkeypatch.setattr(module, "PAGE_EVENTS", 5)
    bus = Stream()
    bus.fill(["a"] * 200)
    history = make_history(bus)
    for below in range(1, 200, 10):
        await walk(history, ["a"], after=below - 1, below=below + 5)
        assert history.size <= 5000
    bus.fill(["b"], body=b'"' + b"x" * 10_000 + b'"')
    await walk(history, ["b"], after=0, below=201)
    assert history.size > 5000
    assert len(history.order) == 1
    assert await fetched(history, ["b"], after=0)


@pytest.mark.parametrize("filter_", ["events.acme.a", "events._all.a"])
async def test_trimmed_while_it_is_read(filter_: str, autojump_clock: trio.abc.Clock) -> None:
    """What was cut off after a page was read may have been cut out of it, or of another part: it is told."""

    class Trimming(Stream):
        async def read(self, subject: str, *, after: int, limit: int) -> Page:
            page = await super().read(subject, after=after, limit=limit)
            if subject == filter_:
                self.trim(50)
            return page

    bus = Trimming()
    bus.fill(["a"] * 100)
    history = make_history(bus, below=90)
    assert (await fetched(history, ["a"], after=10)).trimmed == 49
    assert (await fetched(history, ["a"], after=60)).trimmed <= 60


@pytest.mark.parametrize(("first", "below", "trimmed"), [(1, 90, 0), (20, 90, 19), (101, 90, 90)])
async def test_no_more_is_gone_than_what_lies_below_the_ring(
    first: int, below: int, trimmed: int, autojump_clock: trio.abc.Clock
) -> None:
    """A stream that was purged takes nothing away that the ring still holds."""
    bus = Stream()
    bus.fill(["a"] * 100)
    bus.trim(first)
    found = await fetched(make_history(bus, below=below), ["a"], after=5)
    assert found.trimmed == trimmed
    assert found.upto <= below


async def test_another_stream(autojump_clock: trio.abc.Clock) -> None:
    """Records of another incarnation are never taken for ours."""
    bus = Stream(incarnation="inc1")
    bus.fill(["a"])
    with pytest.raises(Unavailable, match="recreated"):
        await make_history(bus).fetch(selected(["a"]), 0)


async def test_a_failed_read_is_nobody_elses(autojump_clock: trio.abc.Clock) -> None:
    """Who waited for a read that failed reads by itself, and nothing of the failure is kept."""
    bus = Stream(failures=1.0)
    bus.fill(["a"] * 5)
    history = make_history(bus)
    failed: list[Unavailable] = []

    async def reader() -> None:
        try:
            await history.fetch(selected(["a"]), 0)
        except Unavailable as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(reader)
    assert len(failed) == 3
    assert not history.kept
    bus.failures = 0.0
    assert len(await walk(history, ["a"], after=0, below=5)) == 5


async def test_the_gate_bounds_reads(autojump_clock: trio.abc.Clock) -> None:
    """However many readers of different channels there are, only so many read at once."""
    bus = Stream()
    bus.fill([f"c{number}" for number in range(50)])
    history = make_history(bus, at_once=3)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(partial(walk, history, [f"c{number}"], after=0, below=50))
    assert bus.most == 3


async def test_several_filters_are_woven_once(autojump_clock: trio.abc.Clock) -> None:
    """What is kept for them together shares the events of its parts, and is found as long as they are."""
    bus = Stream()
    bus.fill(["a", "b", "c"] * 10)
    bus.fill(["b"], tenant="_all")
    history = make_history(bus)
    found = await fetched(history, ["a", "b"], after=0)
    wanted = matching(bus, {"a": (), "b": ()})
    assert [sequence_of(place) for place in found.tick.places] == [
        each for each in wanted if each <= found.upto
    ]
    parts = [each for wanted, segments in history.kept.items() if len(wanted) == 1 for each in segments]
    assert len(parts) == 4
    frames = {id(frame) for part in parts for frame in part.tick.frames}
    assert {id(frame) for frame in found.tick.frames} <= frames
    assert history.size == sum(each.size for each in (*parts, found))
    assert await fetched(history, ["a", "b"], after=found.upto - 1) is found


async def test_what_is_deleted_is_taken_out(autojump_clock: trio.abc.Clock) -> None:
    """Of the parts, and of what was woven of them; what is read later has not got it."""
    bus = Stream()
    bus.fill(["a", "b"] * 5)
    history = make_history(bus)
    found = await fetched(history, ["a", "b"], after=0)
    sequence = sequence_of(found.tick.places[-1])
    assert sequence > 1
    for each in (1, sequence):
        bus.delete([each])
        history.blank(Ranges.of([each]))
    assert await fetched(history, ["a", "b"], after=0) is found
    for segments in history.kept.values():
        for tick in (segment.tick for segment in segments):
            left = [place for index, place in enumerate(tick.places) if not tick.gone >> index & 1]
            assert not {at(1), at(sequence)} & set(left)
            assert len(left) == len([frame for frame in tick.frames if frame])
    history.clear()
    assert (await walk(history, ["a", "b"], after=0, below=10))[0] == (2, "b")


async def test_deleted_while_the_next_filter_is_read(autojump_clock: trio.abc.Clock) -> None:
    """Also when the part that had it was forgotten meanwhile, as under pressure of memory."""

    class Forgetting(Stream):
        async def read(self, subject: str, *, after: int, limit: int) -> Page:
            if subject == "events.acme.b" and 1 not in self.deleted:
                history.clear()
                self.delete([1])
                history.blank(Ranges.of([1]))
            return await super().read(subject, after=after, limit=limit)

    bus = Forgetting()
    bus.fill(["a", "b"] * 5)
    history = make_history(bus)
    assert (await walk(history, ["a", "b"], after=0, below=10))[0] == (2, "b")


# --- filters ---------------------------------------------------------------------------------------

ANY_PATTERNS = st.lists(st.sampled_from([*PATTERNS, *(f"n{n}" for n in range(12))]), max_size=14)


@settings(deadline=None)
@given(
    patterns=ANY_PATTERNS,
    channel=st.sampled_from([*CHANNELS, "n3"]),
    tenant=st.sampled_from(["acme", "_all"]),
)
def test_filters_hold_every_event(patterns: list[str], channel: str, tenant: str) -> None:
    """What a pattern covers is in one of the filters, and they are few."""
    found = filters(NAMES, "acme", patterns)
    assert len(found) == len(set(found)) <= 2 * module.MAX_FILTERS
    assert all(each.split(".")[1] in ("acme", "_all") for each in found)
    private = channel.startswith("users.")
    if any(subjects.covers(pattern, channel) for pattern in patterns) and not (private and tenant == "_all"):
        assert any(matches(each, NAMES.subject(tenant, channel)) for each in found)
    by_themselves = filters(NAMES, "acme", patterns, most=len(patterns))
    assert all(each.split(".", 2)[2] in patterns for each in by_themselves)


@settings(deadline=None)
@given(patterns=ANY_PATTERNS, channel=st.sampled_from([*CHANNELS, "n3"]))
def test_narrowed_loses_nothing(patterns: list[str], channel: str) -> None:
    """The patterns that are left cover the same channels, and none covers another."""
    left = narrowed(patterns)

    def covered(some: list[str]) -> bool:
        return any(subjects.covers(pattern, channel) for pattern in some)

    assert covered(left) == covered(patterns)
    pairs: list[Any] = [(one, other) for one in left for other in left if one != other]
    assert not any(subjects.covers(one, other) for one, other in pairs)
