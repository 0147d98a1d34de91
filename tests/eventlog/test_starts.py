"""Starts: where to begin, and the truth about what cannot be had."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import config, filters, subjects
from broker.errors import SnapshotTooLarge, Unavailable
from broker.eventlog import starts
from broker.eventlog.index import Index
from broker.eventlog.starts import Beginning, Lost, Scope, Starts
from broker.wire.positions import Position
from broker.wire.starts import After, Last, Since
from tests.eventlog.stream import BAD, NAMES, Patterns, Stream, check, matching
from tests.support.seeds import simulated

if TYPE_CHECKING:
    import trio

    from broker.bus.base import StreamState

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
CHANNELS = ["a", "a.b", "a.c", "b.b", "b", "users.u.i", "users.w.i"]
PATTERNS = ["a", "a.>", "a.*", "*", "*.b", ">", "b", "users.u.>", "*.*.i"]


def make_starts(bus: Stream, *, thinned: bool = False, **limits: Any) -> Starts:
    bus.per_subject = int(thinned)
    return Starts(
        bus=bus,
        names=NAMES,
        limits=config.Limits(**limits),
        check=check,
        remembered=bus.remembered,
        look=bus.state,
        gone=lambda *_: False,
        index=lambda: Index(bus.last_sequence),
    )


def make_scope(
    bus: Stream, patterns: Patterns, *, floor: int | None = None, head: int | None = None
) -> Scope:
    """A tenant whose ring begins at `floor`: by default it is empty and all is in the stream."""
    head = bus.last_sequence if head is None else head
    floor = head if floor is None else floor
    return Scope(
        tenant="acme",
        incarnation="inc0",
        patterns=patterns,
        head=head,
        floor=floor,
        held=[each for each in matching(bus, patterns) if floor < each <= head],
    )


def filled(count: int, *, first: int = 1, channel: str = "a") -> Stream:
    bus = Stream()
    bus.fill([channel] * count)
    bus.trim(first)
    return bus


def after(sequence: int, incarnation: str = "inc0") -> After:
    return After(Position(incarnation, sequence))


A: Patterns = {"a": ()}


# --- after a position ------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [60, 61, 99, 100])
async def test_position_in_the_ring(sequence: int, autojump_clock: trio.abc.Clock) -> None:
    """From the ring's beginning to P: nothing is asked of the stream, whatever has left it."""
    bus = filled(100, first=90)
    found = await make_starts(bus, thinned=True).resolve(after(sequence), make_scope(bus, A, floor=60))
    assert found == Beginning(after=sequence)
    assert found.recovered
    assert bus.reads == 0


@pytest.mark.parametrize("sequence", [9, 10, 59])
async def test_position_in_the_stream(sequence: int, autojump_clock: trio.abc.Clock) -> None:
    """All that the stream still holds is had without a gap, from just before its first message on."""
    bus = filled(100, first=10)
    found = await make_starts(bus).resolve(after(sequence), make_scope(bus, A, floor=60))
    assert found == Beginning(after=sequence)


@pytest.mark.parametrize("sequence", [0, 8])
async def test_position_that_was_trimmed(sequence: int, autojump_clock: trio.abc.Clock) -> None:
    """What the stream has cut off since is told, up to where it begins now."""
    bus = filled(100, first=10)
    found = await make_starts(bus).resolve(after(sequence), make_scope(bus, A, floor=60))
    assert found == Beginning(after=9, lost=(Lost(reason="trimmed", start=sequence, end=9),))
    assert not found.recovered


async def test_purged_stream_and_a_ring_that_remembers(autojump_clock: trio.abc.Clock) -> None:
    """What the stream does not hold any more is gone, also where the ring had it."""
    bus = filled(100)
    scope = make_scope(bus, A, floor=60)
    bus.trim(101)
    found = await make_starts(bus).resolve(after(20), scope)
    assert found == Beginning(after=100, lost=(Lost(reason="trimmed", start=20, end=100),))
    found = await make_starts(bus).resolve(Last(50), scope)
    assert found == Beginning(after=60, warned=100)


@pytest.mark.parametrize(
    "asked", [after(5, "other"), after(50, "other"), after(101), after(10**20 - 1), after(0, "z")]
)
async def test_reset(asked: After, autojump_clock: trio.abc.Clock) -> None:
    """A position of another incarnation, or above the end: what the stream holds now, and `reset`."""
    bus = filled(100, first=10)
    found = await make_starts(bus).resolve(asked, make_scope(bus, A, floor=60))
    assert found == Beginning(after=9, lost=(Lost(reason="reset", start=None, end=9),))


async def test_another_broker_may_be_ahead(autojump_clock: trio.abc.Clock) -> None:
    """A position that only the stream knows yet is a good one."""
    bus = filled(100)
    found = await make_starts(bus).resolve(after(98), make_scope(bus, A, head=95, floor=60))
    assert found == Beginning(after=98)


@pytest.mark.parametrize(("sequence", "recovered"), [(59, False), (60, True), (5, False)])
async def test_thinned_stream(sequence: int, recovered: bool, autojump_clock: trio.abc.Clock) -> None:
    """Where only so many messages of a subject are kept, a start below the ring may have lost any of them."""
    bus = filled(100)
    found = await make_starts(bus, thinned=True).resolve(after(sequence), make_scope(bus, A, floor=60))
    lost = () if recovered else (Lost(reason="trimmed", start=sequence, end=sequence),)
    assert found == Beginning(after=sequence, lost=lost)


async def test_stream_out_of_reach(autojump_clock: trio.abc.Clock) -> None:
    """A start that needs the stream says that it is away; one in the ring does not need it."""
    bus = filled(100)
    bus.failures = 1.0
    made = make_starts(bus)
    scope = make_scope(bus, A, floor=60)
    assert await made.resolve(after(70), scope) == Beginning(after=70)
    for start in (after(5), Last(90)):
        with pytest.raises(Unavailable):
            await made.resolve(start, scope)


# --- since a time ----------------------------------------------------------------------------------


def timed(count: int, *, first: int = 1) -> Stream:
    """A message a second, from noon on."""
    bus = filled(count, first=first)
    bus.times = [(NOON + timedelta(seconds=record[0]), record[0]) for record in bus.records]
    return bus


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-(10**6), 0),
        (0, 0),
        (1, 0),
        (1.5, 1),
        (2, 1),
        (50, 49),
        (99.5, 99),
        (100, 99),
        (100.5, 100),
        (10**6, 100),
    ],
)
async def test_since(seconds: float, expected: int, autojump_clock: trio.abc.Clock) -> None:
    """The first message stored at or after the time is the first to come; the future is now."""
    bus = timed(100)
    found = await make_starts(bus).resolve(
        Since(NOON + timedelta(seconds=seconds)), make_scope(bus, A, floor=60)
    )
    assert found == Beginning(after=expected)


@pytest.mark.parametrize(
    ("seconds", "complete"), [(0, False), (9, False), (10, False), (10.5, True), (11, True)]
)
async def test_since_before_the_oldest(
    seconds: float, complete: bool, autojump_clock: trio.abc.Clock
) -> None:
    """When the oldest message left is within the wish there may have been older ones: it is told."""
    bus = timed(100, first=10)
    found = await make_starts(bus).resolve(
        Since(NOON + timedelta(seconds=seconds)), make_scope(bus, A, floor=60)
    )
    assert found.recovered == complete
    assert found.after == (10 if complete else 9)
    assert [each.reason for each in found.lost] == ([] if complete else ["trimmed"])


@pytest.mark.parametrize(("seconds", "recovered"), [(60, False), (61, True)])
async def test_since_in_a_thinned_stream(
    seconds: int, recovered: bool, autojump_clock: trio.abc.Clock
) -> None:
    """What begins in the ring has lost nothing."""
    bus = timed(100)
    found = await make_starts(bus, thinned=True).resolve(
        Since(NOON + timedelta(seconds=seconds)), make_scope(bus, A, floor=60)
    )
    assert (found.after, found.recovered) == (seconds - 1, recovered)


async def test_since_with_an_empty_stream(autojump_clock: trio.abc.Clock) -> None:
    """Nothing there: from now."""
    assert await make_starts(Stream()).resolve(Since(NOON), make_scope(Stream(), A)) == Beginning(after=0)


async def test_since_trimmed_in_between(autojump_clock: trio.abc.Clock) -> None:
    """The message that was found is gone a moment later: it is told, and where the stream begins now."""

    class Trimming(Stream):
        async def state(self) -> StreamState:
            self.trim(40)
            return await super().state()

    bus = Trimming(times=[(NOON, 30)])
    bus.fill(["a"] * 100)
    found = await make_starts(bus).resolve(Since(NOON), make_scope(bus, A, floor=60))
    assert (found.after, found.recovered) == (39, False)


# --- more than `replay_events` ---------------------------------------------------------------------


def remaining(bus: Stream, patterns: Patterns, found: Beginning) -> int:
    return len([each for each in matching(bus, patterns) if each > found.after])


@pytest.mark.parametrize(("count", "skipped"), [(10, 0), (11, 1), (100, 90)])
async def test_limit(count: int, skipped: int, autojump_clock: trio.abc.Clock) -> None:
    """Exactly so many are replayed, the newest; the gap counts those that are not."""
    bus = Stream()
    for _ in range(count):
        bus.fill(["a", "b"])
    found = await make_starts(bus, replay_events=10).resolve(after(0), make_scope(bus, A))
    assert remaining(bus, A, found) == min(count, 10)
    if not skipped:
        assert found == Beginning(after=0)
    else:
        lost = Lost(reason="limit", start=0, end=found.after, count=skipped)
        assert found.lost == (lost,)
        assert len([each for each in matching(bus, A) if each <= found.after]) == skipped


async def test_trimmed_and_over_the_limit(autojump_clock: trio.abc.Clock) -> None:
    """Both are told, in the order of the stream."""
    bus = filled(100, first=21)
    found = await make_starts(bus, replay_events=30).resolve(after(5), make_scope(bus, A))
    assert found.lost == (
        Lost(reason="trimmed", start=5, end=20),
        Lost(reason="limit", start=20, end=70, count=50),
    )
    assert remaining(bus, A, found) == 30


async def test_reset_and_over_the_limit(autojump_clock: trio.abc.Clock) -> None:
    """What the stream holds now is bounded like every other replay."""
    bus = filled(100)
    found = await make_starts(bus, replay_events=30).resolve(after(5, "z"), make_scope(bus, A))
    assert [each.reason for each in found.lost] == ["reset", "limit"]
    assert found.after == 70


@pytest.mark.parametrize("thinned", [False, True])
async def test_what_others_get_is_not_counted(thinned: bool, autojump_clock: trio.abc.Clock) -> None:
    """Private channels of others, other tenants, and channels beside a long list never use up the limit."""
    bus = Stream()
    bus.fill(["a"])
    for _ in range(50):
        bus.fill(["users.w.i", "users.w.i", "busy"])
        bus.fill(["a"], tenant="other")
    made = make_starts(bus, replay_events=60, thinned=thinned)
    wanted: list[Patterns] = [
        {">": ()},
        {">": (), "users.u.>": ()},
        {f"n{n}": () for n in range(40)} | {"a": ()},
    ]
    for patterns in wanted:
        found = await made.resolve(after(0), make_scope(bus, patterns))
        assert found.after == 0, patterns
        assert found.recovered != thinned
    found = await make_starts(bus, replay_events=30).resolve(after(0), make_scope(bus, {"*": ()}))
    assert found.lost[-1] == Lost(reason="limit", start=0, end=found.after, count=21)


async def test_no_count_where_none_is_known(autojump_clock: trio.abc.Clock) -> None:
    """Overlapping patterns, denied channels, events that arrive meanwhile: a wrong count is worse."""
    bus = Stream()
    bus.fill(["a.b", "a.c", "b.b"] * 20)
    made = make_starts(bus, replay_events=10)
    wanted: list[Patterns] = [{"a.*": (), "*.b": ()}, {"a.>": ("a.c",)}]
    for patterns in wanted:
        found = await made.resolve(after(0), make_scope(bus, patterns))
        [lost] = found.lost
        assert (lost.reason, lost.count) == ("limit", None)
        assert 0 < remaining(bus, patterns, found) <= 10

    class Growing(Stream):
        async def delay(self) -> None:
            self.fill(["a"])

    growing = Growing()
    growing.fill(["a"] * 100)
    found = await make_starts(growing, replay_events=10).resolve(after(0), make_scope(growing, A))
    assert [each.count for each in found.lost] == [None]


# --- the newest N ----------------------------------------------------------------------------------


@simulated(10)
async def test_last(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """Exactly the newest N of what the patterns match, from ring and stream, or all there are.

    Also where a replica of the stream is late.
    """
    rng = random.Random(seed)
    bus = Stream(random=rng)
    for _ in range(rng.choice((0, 20, 200))):
        bus.fill([rng.choice(CHANNELS)], tenant=rng.choice(("acme", "acme", "_all", "other")))
        if rng.random() < 0.2:
            bus.fill([rng.choice(CHANNELS)], body=BAD)
    bus.trim(rng.choice((1, bus.last_sequence // 2 + 1, bus.last_sequence + 1)))
    chosen = rng.sample(PATTERNS, rng.randint(1, 4)) + [f"n{n}" for n in range(rng.choice((0, 20)))]
    denials: list[tuple[str, ...]] = [(), ("a.b",), ("*.b", "a.c"), ("b.>",)]
    patterns = {
        pattern: tuple(deny for deny in rng.choice(denials) if subjects.overlaps(deny, pattern))
        for pattern in chosen
    }
    bus.missing = rng.choice((0, 10, 25))
    head = rng.randint(bus.last_sequence - bus.last_sequence // 4, bus.last_sequence)
    scope = make_scope(bus, patterns, floor=rng.randint(0, head), head=head)
    count = rng.choice((1, 3, 10, 50))
    found = await make_starts(bus).resolve(Last(count), scope)
    wanted = [each for each in matching(bus, patterns) if each <= head]
    assert [each for each in wanted if each > found.after] == wanted[-count:]
    assert found.recovered


async def test_last_in_the_ring_asks_nothing(autojump_clock: trio.abc.Clock) -> None:
    """What the ring holds needs no stream."""
    bus = filled(100)
    bus.failures = 1.0
    assert await make_starts(bus).resolve(Last(40), make_scope(bus, A, floor=60)) == Beginning(
        after=60, warned=100
    )


async def test_last_reads_little(autojump_clock: trio.abc.Clock) -> None:
    """A few quiet channels in a busy stream, private ones beside it: found by bisection, not by reading."""
    bus = Stream()
    bus.fill([f"n{number}" for number in range(20)])
    bus.fill(["busy", "users.w.i"] * 1000)
    patterns: Patterns = {f"n{number}": () for number in range(20)}
    found = await make_starts(bus).resolve(Last(5), make_scope(bus, patterns))
    assert remaining(bus, patterns, found) == 5
    assert all("acme.n" in each or "_all.n" in each for each in bus.asked)
    bus.asked.clear()
    found = await make_starts(bus).resolve(Last(5), make_scope(bus, {">": ()}))
    assert remaining(bus, {">": ()}, found) == 5
    assert len(bus.asked) < 200


async def test_last_gives_up_where_it_would_read_everything(autojump_clock: trio.abc.Clock) -> None:
    """What is denied has to be read to be left out: no more of it than a replay may hold, and told then."""
    bus = Stream()
    bus.fill(["a.c"] + ["a.b"] * 3000)
    patterns: Patterns = {"a.>": ("a.b",)}
    found = await make_starts(bus, replay_events=100).resolve(Last(1), make_scope(bus, patterns))
    [lost] = found.lost
    assert (lost.reason, lost.start, lost.end, lost.count) == ("limit", 0, found.after, None)
    assert len(bus.asked) < 1000
    found = await make_starts(bus).resolve(Last(1), make_scope(bus, patterns))
    assert found == Beginning(after=0, warned=3001)


@simulated(15)
async def test_last_of_what_passes(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """A filter decides what counts, in the ring and below it; tombstones always do."""
    rng = random.Random(seed)
    bus = Stream(random=rng, missing=rng.choice((0, 10)))
    for _ in range(rng.choice((20, 300))):
        tenant, body = rng.choice(("acme", "_all", "other")), rng.choice((b"1", b"2", b""))
        bus.fill([rng.choice(CHANNELS)], tenant=tenant, body=body)
    wanted = {record[0] for record in bus.records if record[2] in (b"", b"2")}
    patterns: Patterns = {"a.>": ("a.b",), "b": ()}
    scope = make_scope(bus, patterns, floor=rng.randint(0, bus.last_sequence))
    held = [each for each in scope.held if each in wanted]
    scope = attrs.evolve(scope, held=held, filter=filters.parse({"": 2}))
    count = rng.choice((1, 5, 50))
    found = await make_starts(bus).resolve(Last(count), scope)
    left = [each for each in matching(bus, patterns) if each in wanted]
    assert [each for each in left if each > found.after] == left[-count:]
    assert found.recovered


async def test_last_of_what_passes_looks_at_so_many(autojump_clock: trio.abc.Clock) -> None:
    """`replay_events`, and says so if that was not all."""
    bus = filled(3000)
    scope = attrs.evolve(make_scope(bus, A), filter=filters.parse({"": 2}))
    found = await make_starts(bus, replay_events=500).resolve(Last(7), scope)
    assert found.after == 2500
    assert found.lost == (Lost(reason="limit", start=0, end=2500),)
    assert (await make_starts(bus).resolve(Last(7), scope)).recovered


async def test_a_limit_of_what_is_filtered_has_no_count(autojump_clock: trio.abc.Clock) -> None:
    bus = filled(300)
    for wanted, count in ((None, 200), (filters.parse({"": 1}), None)):
        scope = attrs.evolve(make_scope(bus, A), filter=wanted)
        found = await make_starts(bus, replay_events=100).resolve(after(0), scope)
        assert [each.count for each in found.lost] == [count]


# --- snapshots -------------------------------------------------------------------------------------


@simulated(15)
async def test_snapshot(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """The newest event at or below the ring's beginning of each matching channel, broadcasts included.

    Also where a replica of the stream is late.
    """
    rng = random.Random(seed)
    bus = Stream(random=rng, missing=rng.choice((0, 10, 25)))
    for _ in range(rng.choice((0, 10, 100))):
        tenant = rng.choice(("acme", "acme", "_all", "other"))
        bus.fill([rng.choice(CHANNELS)], tenant=tenant, body=rng.choice((b"1", b"2", b"", BAD)))
    patterns: dict[str, tuple[str, ...]] = {
        pattern: rng.choice(((), ("a.b",)))
        for pattern in rng.sample(PATTERNS, rng.randint(1, 4))
        if subjects.overlaps(pattern, "a.b") or rng.random() < 0.5
    }
    scope = make_scope(bus, patterns, floor=rng.randint(0, bus.last_sequence))
    entitled = [each for each in matching(bus, patterns) if each <= scope.floor]
    newest = {NAMES.split(bus.records[each - 1][1])[1]: bus.records[each - 1] for each in entitled}
    assert await make_starts(bus).snapshot(scope) == newest


async def test_snapshot_behind_dead_letters(autojump_clock: trio.abc.Clock) -> None:
    """A dead letter is no event: it hides none either, not even of a broadcast channel."""
    bus = Stream()
    bus.fill(["a"], body=b"1")
    bus.fill(["a"], body=b"2", tenant="_all")
    bus.fill(["a", "b", "a"], body=BAD)
    bus.fill(["a"], body=BAD, tenant="_all")
    found = await make_starts(bus).snapshot(make_scope(bus, {">": ()}))
    assert {channel: record[2] for channel, record in found.items()} == {"a": b"2"}


@pytest.mark.parametrize("patterns", [{">": ()}, {"a.*": ()}, {"a.1": (), "a.2": (), "a.3": (), "a.4": ()}])
async def test_snapshot_limit(patterns: Patterns, autojump_clock: trio.abc.Clock) -> None:
    """As many channels as allowed and not one more, by whatever patterns, before any of them is read."""
    bus = Stream()
    bus.fill(["a.1", "a.2", "a.3", "a.4"] * 3)
    bus.fill(["a.1"], tenant="_all")
    assert len(await make_starts(bus, snapshot_channels=4).snapshot(make_scope(bus, patterns))) == 4
    bus.asked.clear()
    with pytest.raises(SnapshotTooLarge):
        await make_starts(bus, snapshot_channels=3).snapshot(make_scope(bus, patterns))
    assert not bus.asked


async def test_snapshot_bytes(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few channels with large events are too much as well."""
    monkeypatch.setattr(starts, "SNAPSHOT_BYTES", 1000)
    bus = Stream()
    bus.fill(["a", "b"], body=b"1" * 500)
    assert len(await make_starts(bus).snapshot(make_scope(bus, {"*": ()}))) == 2
    bus.fill(["c"], body=b"1")
    with pytest.raises(SnapshotTooLarge, match="more than 1000 bytes"):
        await make_starts(bus).snapshot(make_scope(bus, {"*": ()}))
