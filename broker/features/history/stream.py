"""The stream as one page of history reads it: in its turn, and within its budget of reads.

What the index of the feed knows of is looked up there, and fetched by exact gets. Further back the stream is
searched by many small gets at once, each for the first event after a sequence: NATS answers them in
microseconds. A batch would cost it milliseconds, since it counts all that follows, and everybody's publishes
wait meanwhile; bisection, which counts, likewise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Protocol

import attrs

from broker import subjects
from broker.bus.base import Page
from broker.errors import Unavailable
from broker.eventlog.history import filters
from broker.eventlog.places import sequence_of
from broker.eventlog.starts import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import trio

    from broker.bus.base import Record, StreamState
    from broker.eventlog.gone import Gone
    from broker.eventlog.history import Checked
    from broker.eventlog.index import Entries, Index
    from broker.eventlog.log import EventLog
    from broker.eventlog.starts import Starts
    from broker.eventlog.tick import Tick
    from broker.turns import Turn

GETS = 128  # exact ones at a time: a read
SEARCHES = 32  # at a time, for the first event after a sequence; publishers wait for those under way
COUNTED = 256  # such searches are a read
RARE = 500  # sequences from one event to the next
MOST_FILTERS = 32  # subject filters; for more patterns the whole tenant is searched
NARROWER = 16  # times, after a window that held too much
DISTANCES = tuple(8**exponent for exponent in range(7))  # of a sample, up to 262,144 sequences
MORE = 4  # times as many gets as there are parts, before a window becomes a smaller one
ROUNDS = 4  # more than expected, after which a part has far more events, and is divided
LISTED = 4096  # entries of the index, before other tasks may run


class Memory(Protocol):
    """What the feed has brought: which stream it reads, where its newest events are, and what is deleted."""

    @property
    def incarnation(self) -> str: ...
    @property
    def index(self) -> Index: ...
    @property
    def gone(self) -> Gone: ...


@attrs.frozen(kw_only=True)
class Sources:
    """What pages are read from. `advanced` is unparked whenever a tenant has advanced."""

    starts: Starts
    memory: Memory
    log_of: Callable[[str], EventLog]
    advanced: trio.lowlevel.ParkingLot


@attrs.define(eq=False, kw_only=True)
class Stream:
    """Reads of some patterns of a tenant, for one page.

    `enter` waits for the turn to read the stream. `kept` is the first sequence that the stream has. `times`
    are those of the events that were read.
    """

    sources: Sources
    tenant: str
    patterns: Mapping[str, tuple[str, ...]]
    enter: Callable[[], Awaitable[None]]
    log: EventLog = attrs.field(init=False)
    scope: Scope = attrs.field(init=False)
    literals: tuple[str, ...] = attrs.field(init=False)  # without wildcards: all channels, else none
    kept: int = attrs.field(init=False)
    entered: bool = False
    reads: float = 0.0
    gaps: dict[str, float] = attrs.Factory(dict)  # sequences from one event to the next, by subject filter
    narrower: int = 1  # the next window, than it would be
    filters: list[str] = attrs.field(init=False)
    matches: Callable[[str], bool] = attrs.field(init=False)  # whether a subject does
    times: dict[int, int] = attrs.Factory(dict)  # ns since 1970, by sequence
    verdicts: dict[str, bool] = attrs.Factory(dict)  # by channel

    def __attrs_post_init__(self) -> None:
        self.log = log = self.sources.log_of(self.tenant)
        self.kept = self.sources.memory.gone.first
        self.literals = tuple(self.patterns) if all(map(subjects.is_literal, self.patterns)) else ()
        self.filters = filters(self.sources.starts.names, self.tenant, self.patterns, most=MOST_FILTERS)
        self.matches = cache(self.wanted)
        self.scope = Scope(
            tenant=self.tenant,
            incarnation=log.incarnation,
            patterns=self.patterns,
            head=log.position(),
            floor=self.floor(),
            held=[],
        )

    # --- what is in memory ----------------------------------------------------------------------------

    def floor(self) -> int:
        """Return the position after which the ring has all events, and their times are known."""
        return max(sequence_of(self.log.ring.floor), self.index().floor)

    def index(self) -> Index:
        """Return where the newest events are. Raise `Unavailable` when that is another stream's."""
        if self.sources.memory.incarnation != self.log.incarnation:
            raise recreated()
        return self.sources.memory.index

    def admits(self, channel: str) -> bool:
        """Return whether the events of a channel are wanted."""
        verdict = self.verdicts.get(channel)
        if verdict is None:
            verdict = self.verdicts[channel] = self.scope.admits(channel)
        return verdict

    def time(self, sequence: int) -> int | None:
        """Return when an event was stored (ns since 1970); None if it is not known."""
        return self.times.get(sequence) or self.index().time(sequence)

    async def newest(self, upto: int, count: int, turn: Turn) -> tuple[list[int], int]:
        """Return the newest `count` sequences up to a position that match, by the index, and after which
        position these are all.
        """
        index = self.index()
        if self.literals:
            found = index.newest(self.subjects(), upto=upto, count=count)
            return found, found[0] - 1 if len(found) == count else index.floor
        found, most = [], count
        while len(found) < count and upto > (floor := self.index().floor):
            sequences, owners = self.index().below(upto, most)
            found[:0] = self.picked(sequences, owners)
            upto = sequences[0] - 1 if len(sequences) == most else floor
            most = min(4 * most, LISTED)
            await turn.pass_on()
        found = found[-count:]
        return found, found[0] - 1 if len(found) == count else upto

    async def oldest(self, after: int, upto: int, count: int, turn: Turn) -> tuple[list[int], int]:
        """Return the oldest `count` sequences after a position up to another that match, by the index, and up
        to which position these are all.
        """
        if self.literals:
            found = self.index().oldest(self.subjects(), after=after, upto=upto, count=count)
            return found, found[-1] if len(found) == count else upto
        found, most = [], count
        while len(found) < count and self.index().floor <= after < upto:
            sequences, owners = self.index().above(after, most)
            found += self.picked(sequences, owners)
            after = sequences[-1] if len(sequences) == most else upto
            most = min(4 * most, LISTED)
            await turn.pass_on()
        found = [each for each in found if each <= upto][:count]
        return found, found[-1] if len(found) == count else min(after, upto)

    def picked(self, sequences: Sequence[int], owners: Sequence[Entries]) -> list[int]:
        """Return the sequences whose subjects match; to look at many is as much work as a read."""
        self.reads += len(sequences) / (4 * LISTED)
        pairs, matches = zip(sequences, owners, strict=True), self.matches
        return [sequence for sequence, owner in pairs if matches(owner.subject)]

    def wanted(self, subject: str) -> bool:
        tenant, channel = self.sources.starts.names.split(subject)
        return tenant in (self.tenant, subjects.BROADCAST) and self.admits(channel)

    def subjects(self) -> list[str]:
        """Return the subjects of the literal channels."""
        names = self.sources.starts.names
        tenants = self.tenant, subjects.BROADCAST
        return [names.subject(tenant, channel) for tenant in tenants for channel in self.literals]

    # --- reads of the stream --------------------------------------------------------------------------

    async def begin(self) -> None:
        """Wait for the turn to read the stream, once."""
        if not self.entered:
            await self.enter()
            self.entered = True

    async def look(self) -> StreamState:
        """Return the state of the stream; after a read, so that it was still the same then."""
        state = await self.sources.starts.look()
        if state.incarnation != self.log.incarnation:
            raise recreated()
        self.kept = state.first
        return state

    async def get(self, sequences: Sequence[int]) -> Tick:
        """Return the events at some sequences that are still there."""
        self.reads += 1
        wanted = set(sequences)
        held = self.remembered(sequences[0] - 1, sequences[-1]) if sequences else {}
        held = {sequence: event for sequence, event in held.items() if sequence in wanted}
        rest = [each for each in sequences if each not in held]
        if rest:
            held |= self.checked(await self.sources.starts.bus.get(rest))
        return self.encoded(held)

    async def gauge(self, near: int, step: int) -> tuple[float, float]:
        """Return how many sequences there are to an event from a position on, and how large one is, about.

        From anywhere it is as far to the next event as from one event to the next, on average.
        """
        self.reads += 1
        starts = sorted({max(self.kept - 1, near + step * distance) for distance in DISTANCES})
        rate, sizes = 0.0, [0]
        for subject in self.filters:
            records = (await self.next(subject, starts)).records
            known = [record[0] for record in records]
            waits = [known[at] - each for each in starts if (at := bisect_right(known, each)) < len(known)]
            self.gaps[subject] = max(1.0, median(waits) / math.log(2)) if waits else math.inf
            rate += 1 / self.gaps[subject]
            sizes += [len(record[2]) for record in records]
        return 1 / rate if rate else math.inf, sum(sizes) / len(sizes)

    async def window(self, low: int, high: int, step: int) -> tuple[Tick, int, int]:
        """Return what matches after one position up to another, and for which range that is all.

        That is less than asked for, or nothing, where there is much more than was to be expected; then the
        next window should be narrower. `step` is the direction in which it is wanted.
        """
        found = dict[int, "Checked"]()
        for subject in self.filters:
            low, high = await self.collect(found, subject, low, high, step)
        self.narrower = 1 if low < high else NARROWER * self.narrower
        tick = self.encoded({sequence: event for sequence, event in found.items() if low < sequence <= high})
        return tick, low, high

    async def collect(
        self, found: dict[int, Checked], subject: str, low: int, high: int, step: int
    ) -> tuple[int, int]:
        """Add what one filter matches after a position up to another. Return for which range that is all.

        The range is divided so that a part has about one event. Asked for are the first event of each part,
        then what follows it, until it is one of the next part. Rare events are asked for one after the other:
        NATS searches long for each, and should pass over the stream once, and in order.
        """
        gap = self.gaps[subject]
        width = max(1, int(min(gap, high - low)) if gap < RARE else high - low)
        expected = width / gap
        parts = [(after, min(after + width, high)) for after in range(low, high, width)]
        left, rounds = MORE * len(parts) + GETS, 0
        while parts and left > 0:
            left, rounds = left - len(parts), rounds + 1
            page = await self.next(subject, [after for after, _ in parts])
            found |= self.checked(page)
            known = [record[0] for record in page.records]
            rest = []
            for after, end in parts:
                at = bisect_right(known, after)
                if at < len(known) and known[at] < end:
                    rest += split(known[at], end, 1 if rounds < ROUNDS + 2 * expected else 2)
            parts = rest
        if step < 0:
            return max((end for _, end in parts), default=low), high
        return low, min((after for after, _ in parts), default=high)

    async def next(self, subject: str, after: Sequence[int]) -> Page:
        """Return the first record after each of some sequences, all within one answer."""
        records: dict[int, tuple[Record, int]] = {}
        for first in range(0, len(after), SEARCHES):
            some = after[first : first + SEARCHES]
            self.reads += len(some) / COUNTED
            page = await self.sources.starts.bus.next(subject, after=some)
            records |= {each[0]: (each, time) for each, time in zip(page.records, page.times, strict=True)}
        found = [records[sequence] for sequence in sorted(records)]
        return Page(records=[each for each, _ in found], pending=0, times=[time for _, time in found])

    def checked(self, page: Page) -> dict[int, Checked]:
        """Return the events of a page by sequence, and note their times."""
        self.times.update(zip((record[0] for record in page.records), page.times, strict=True))
        check = self.sources.starts.check
        return {record[0]: event for record in page.records if (event := check(record))}

    def remembered(self, after: int, upto: int) -> dict[int, Checked]:
        """Return the feed's memory: a lagging replica does not have it yet, and does not say so."""
        return {event[1][0]: event for event in self.sources.starts.remembered(self.tenant, after, upto)}

    def encoded(self, events: Mapping[int, Checked]) -> Tick:
        """Return those events that match as a tick."""
        matching = [event for _, event in sorted(events.items()) if self.admits(event[0])]
        return self.log.encode(matching, base=0)


def split(after: int, end: int, parts: int) -> list[tuple[int, int]]:
    """Return a range in so many parts, or fewer where it is small."""
    width = max(1, -(-(end - after) // parts))
    return [(each, min(each + width, end)) for each in range(after, end, width)]


def recreated() -> Unavailable:
    return Unavailable("the stream was recreated meanwhile; try again", retry_after=0.1)
