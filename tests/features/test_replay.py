"""History: everything in a range, read once for all who want it, and the truth about what is gone."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, subjects
from broker.actors.fanout import Fanout
from broker.errors import Unavailable
from broker.features import replay
from broker.features.gate import FairGate
from broker.features.replay import History, Span, filters, narrowed
from tests.features.stream import BAD, NAMES, Stream, check, matching
from tests.support.scripted import subjects_match
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.bus.base import Page
    from broker.features.replay import Checked

CHANNELS = ["a", "a.b", "a.c", "b", "users.u.i", "users.w.i"]
PATTERNS = ["a", "a.>", "*", ">", "*.b", "users.u.>", "b", "a.*", "users.*.i"]


class Quiet:
    def quiet_at(self) -> int | None:
        return None


def make_history(bus: Stream, *, at_once: int = 8, remembered: Sequence[Checked] = ()) -> History:
    fanout = Fanout(bounds=config.Ring(), incarnation="inc0", head=0, clock=trio.current_time, feed=Quiet())
    return History(
        tenant="acme",
        bus=bus,
        names=NAMES,
        incarnation="inc0",
        gate=FairGate(at_once),
        look=bus.state,
        check=check,
        remembered=lambda after, upto: [event for event in remembered if after < event[1][0] <= upto],
        encode=lambda checked: fanout.encode(checked, first=0, base=0),
        clock=trio.current_time,
    )


async def walk(history: History, patterns: list[str], *, after: int, below: int) -> list[tuple[int, str]]:
    """All of the range, span by span, as `Sending` reads it."""
    found: set[tuple[int, str]] = set()
    while after < below:
        span = await history.span(patterns, after=after, below=below)
        assert after < span.upto <= below, "no progress"
        for tick in span.ticks:
            for sequence, channel in zip(tick.sequences, tick.channels, strict=True):
                if after < sequence <= span.upto:
                    found.add((sequence, channel))
        after = span.upto
    return sorted(found)


@simulated(40)
async def test_a_walk_finds_each_event(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Span by span all events of the range, also for several readers that start at different places."""
    rng = random.Random(seed)
    monkeypatch.setattr(replay, "PAGE_EVENTS", rng.choice((1, 3, 50)))
    monkeypatch.setattr(replay, "KEPT_BYTES", rng.choice((0, 2000, 10**7)))
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
    assert history.size == sum(segment.tick.size for segment in kept)
    assert all(each.after < n <= each.upto for each in kept for n in each.tick.sequences)
    history.expire(trio.current_time() + 1000)
    assert (history.size, history.kept, len(history.order), len(history.locks)) == (0, {}, 0, 0)


@pytest.mark.parametrize("late", range(0, 40, 3))
async def test_late_replica(
    late: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica has not got yet, and does not miss, is filled in from what the feed has brought."""
    monkeypatch.setattr(replay, "PAGE_EVENTS", 7)
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


async def test_many_readers_read_once(autojump_clock: trio.abc.Clock) -> None:
    """Two thousand clients that come back at once cost one read of each page, wherever each stands in it."""
    bus = Stream()
    bus.fill(["a"] * 1000)
    history = make_history(bus)
    async with trio.open_nursery() as nursery:
        for number in range(2000):
            nursery.start_soon(partial(walk, history, ["a"], after=number % 5, below=1000))
    distinct = len(bus.asked)
    pages = sum(len(segments) for segments in history.kept.values())
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
    await trio.sleep(replay.KEPT_SECONDS + 1)
    history.expire(trio.current_time())
    await walk(history, ["a"], after=0, below=20)
    assert bus.reads > reads


async def test_what_is_kept_is_bounded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the oldest is forgotten; one segment is kept however large."""
    monkeypatch.setattr(replay, "KEPT_BYTES", 5000)
    monkeypatch.setattr(replay, "PAGE_EVENTS", 5)
    bus = Stream()
    bus.fill(["a"] * 200)
    history = make_history(bus)
    for below in range(1, 200, 10):
        await walk(history, ["a"], after=below - 1, below=below + 5)
        assert history.size <= 5000
    bus.fill(["b"], body=b'"' + b"x" * 10_000 + b'"')
    await walk(history, ["b"], after=0, below=201)
    assert len(history.order) >= 1


async def test_trimmed_while_it_is_read(autojump_clock: trio.abc.Clock) -> None:
    """What was cut off after the page was read may have been cut out of it: it is told."""

    class Trimming(Stream):
        async def read(self, subject: str, *, after: int, limit: int) -> Page:
            page = await super().read(subject, after=after, limit=limit)
            self.trim(50)
            return page

    bus = Trimming()
    bus.fill(["a"] * 100)
    history = make_history(bus)
    assert (await history.span(["a"], after=10, below=90)).trimmed == 49
    assert (await history.span(["a"], after=60, below=90)).trimmed <= 60


@pytest.mark.parametrize(("first", "below", "trimmed"), [(1, 90, 0), (20, 90, 19), (101, 90, 90)])
async def test_no_more_is_gone_than_what_lies_below_the_ring(
    first: int, below: int, trimmed: int, autojump_clock: trio.abc.Clock
) -> None:
    """A stream that was purged takes nothing away that the ring still holds."""
    bus = Stream()
    bus.fill(["a"] * 100)
    bus.trim(first)
    span = await make_history(bus).span(["a"], after=5, below=below)
    assert span.trimmed == trimmed
    assert span.upto <= below


async def test_another_stream(autojump_clock: trio.abc.Clock) -> None:
    """Records of another incarnation are never taken for ours."""
    bus = Stream(incarnation="inc1")
    bus.fill(["a"])
    with pytest.raises(Unavailable, match="recreated"):
        await make_history(bus).span(["a"], after=0, below=1)


async def test_a_failed_read_is_nobody_elses(autojump_clock: trio.abc.Clock) -> None:
    """Who waited for a read that failed reads by itself, and nothing of the failure is kept."""
    bus = Stream(failures=1.0)
    bus.fill(["a"] * 5)
    history = make_history(bus)
    failed: list[Unavailable] = []

    async def reader() -> None:
        try:
            await history.span(["a"], after=0, below=5)
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


async def test_no_patterns(autojump_clock: trio.abc.Clock) -> None:
    """A reader of nothing is through at once."""
    assert await make_history(Stream()).span([], after=0, below=7) == Span(ticks=[], upto=7, trimmed=0)


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
    assert len(found) == len(set(found)) <= 2 * replay.MAX_FILTERS
    assert all(each.split(".")[1] in ("acme", "_all") for each in found)
    private = channel.startswith("users.")
    if any(subjects.covers(pattern, channel) for pattern in patterns) and not (private and tenant == "_all"):
        assert any(subjects_match(each, NAMES.subject(tenant, channel)) for each in found)
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
