"""The stream as one page of history reads it: in its turn, and within its budget of reads.

The newest events of literal channels are known by sequence to the index of the feed, and are fetched by exact
gets. All others are searched for in windows of sequences. Nothing is searched by bisection: its counts would
delay everybody who publishes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from broker import subjects
from broker.errors import Unavailable
from broker.eventlog.history import filters
from broker.eventlog.places import sequence_of
from broker.eventlog.starts import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import trio

    from broker.bus.base import Page, StreamState
    from broker.eventlog.gone import Gone
    from broker.eventlog.history import Checked
    from broker.eventlog.index import Index
    from broker.eventlog.log import EventLog
    from broker.eventlog.starts import Starts
    from broker.eventlog.tick import Tick

RARE = 500  # sequences from one event to the next, from which on they are read one by one
OVER = 8  # more than expected are read at a time


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
    reads: int = 0
    times: dict[int, int] = attrs.Factory(dict)  # ns since 1970, by sequence
    verdicts: dict[str, bool] = attrs.Factory(dict)  # by channel

    def __attrs_post_init__(self) -> None:
        self.log = log = self.sources.log_of(self.tenant)
        self.kept = self.sources.memory.gone.first
        self.literals = tuple(self.patterns) if all(map(subjects.is_literal, self.patterns)) else ()
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

    # --- reads of it ------------------------------------------------------------------------------------

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

    async def window(self, low: int, high: int, most: int) -> tuple[Tick, int]:
        """Return what matches after one position, and up to which other, at most `high`, that is all.

        It is not all up to `high` where a filter matches more than about `most` events.
        """
        self.reads += 1
        upto, found = high, dict[int, "Checked"]()
        for subject in filters(self.sources.starts.names, self.tenant, self.patterns):
            upto = min(upto, await self.collect(found, subject, low, high, most))
        found |= self.remembered(low, upto)
        return self.encoded({sequence: event for sequence, event in found.items() if sequence <= upto}), upto

    async def collect(self, found: dict[int, Checked], subject: str, low: int, high: int, most: int) -> int:
        """Add what one filter matches; return up to where that is all.

        Rare events are read one by one, others as many at a time as are to be expected: for those beyond the
        window NATS would search the stream to its end, and count the rest, while publishers wait.
        """
        bus = self.sources.starts.bus
        after, count = low, 0
        while after < high and count < most:
            if not count or after - low > RARE * count:
                page = await bus.next(subject, after=after)
                ended = not page.records
            else:
                expected = (high - after) * count // (after - low) + OVER
                page = await bus.read(subject, after=after, limit=min(expected, most))
                ended = not page.pending
            found |= self.checked(page)
            if ended:
                return high
            after = page.records[-1][0]
            count += len(page.records)
        return min(after, high)

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

    def subjects(self) -> list[str]:
        """Return the subjects of the literal channels."""
        names = self.sources.starts.names
        tenants = self.tenant, subjects.BROADCAST
        return [names.subject(tenant, channel) for tenant in tenants for channel in self.literals]


def recreated() -> Unavailable:
    return Unavailable("the stream was recreated meanwhile; try again", retry_after=0.1)
