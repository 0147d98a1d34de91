"""One page of history: the newest events below a position, or those that follow one.

The newest events are in the ring. Below it, those of literal channels are known by sequence to the index of
the feed, as far back as it reaches, and are fetched by exact gets. For all others the stream is read in
windows of sequences, each as wide as the events found so far suggest. Nothing is searched by bisection: its
counts would delay everybody who publishes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import attrs
import msgspec
import trio

from broker import subjects
from broker.errors import Unavailable
from broker.eventlog.history import filters
from broker.eventlog.places import at, sequence_of
from broker.eventlog.starts import Scope
from broker.eventlog.tick import indices
from broker.wire import frames
from broker.wire import messages as m
from broker.wire.positions import Position
from broker.wire.starts import After, Since
from broker.wire.times import precisely

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from broker.bus.base import Page, StreamState
    from broker.eventlog.gone import Gone
    from broker.eventlog.history import Checked
    from broker.eventlog.index import Index
    from broker.eventlog.log import EventLog
    from broker.eventlog.starts import Beginning, Starts
    from broker.eventlog.tick import Tick

GETS = 128  # exact ones at a time
LEAST, MOST = 64, 512  # events of a window
RARE = 500  # sequences from one event to the next, from which on they are read one by one
OVER = 8  # more than expected are read at a time
WIDER = 16  # by which a window grows at most
SPARE = 1.5  # more than is expected to suffice
REACH_SECONDS = 5.0  # another broker may be milliseconds ahead of this one
SCANNED = 4  # ticks, before other tasks may run
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HEAD = len('{"type":"event","payload":')


@attrs.frozen
class Before:
    """The newest events below a position."""

    position: Position


Start: TypeAlias = Before | After | Since | None


@attrs.frozen(kw_only=True)
class Wish:
    """Read at most `limit` events of some patterns, each with the denied patterns to leave out.

    `rights` are the allowed and the denied patterns by which that was decided; `channel` names the patterns
    in the reply.
    """

    patterns: dict[str, tuple[str, ...]]
    refused: list[m.Refused]
    rights: tuple[tuple[str, ...], tuple[str, ...]]
    start: Start
    limit: int
    channel: m.OneOrMany


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
class Reading:
    """A page that is being read.

    `user` is whose own events have an id here. `enter` waits for the turn to read the stream. `step` is 1 or
    -1, the direction; `bound` is the last position that has been looked at in that direction, all between it
    and the start included.
    """

    sources: Sources
    tenant: str
    user: str | None
    wish: Wish
    most_bytes: int
    most_reads: int
    enter: Callable[[], Awaitable[None]]
    log: EventLog = attrs.field(init=False)
    scope: Scope = attrs.field(init=False)
    literals: tuple[str, ...] = attrs.field(init=False)  # without wildcards: all channels, else none
    step: int = -1
    begun: int = 0
    bound: int = 0
    found: list[bytes] = attrs.Factory(list)
    size: int = 0
    full: bool = False
    entered: bool = False
    reads: int = 0
    kept: int = 0  # the first sequence that the stream has
    times: dict[int, int] = attrs.Factory(dict)  # of events that were read from the stream
    verdicts: dict[str, bool] = attrs.Factory(dict)  # by channel

    def __attrs_post_init__(self) -> None:
        self.log = log = self.sources.log_of(self.tenant)
        self.kept = self.sources.memory.gone.first
        patterns = self.wish.patterns
        self.literals = tuple(patterns) if all(map(subjects.is_literal, patterns)) else ()
        self.scope = Scope(
            tenant=self.tenant,
            incarnation=log.incarnation,
            patterns=patterns,
            head=log.position(),
            floor=self.floor(),
            held=[],
        )

    async def read(self) -> m.Past:
        """Return the page. Raise `Unavailable`, and what `enter` raises."""
        start, recovered = self.wish.start, True
        if isinstance(start, After | Since):
            beginning = await self.beginning(start)
            await self.reach(beginning.after)
            await self.forwards(beginning.after)
            recovered = beginning.recovered and beginning.after >= self.kept - 1
            more = self.bound < (self.log.position() if self.full else self.scope.head)
            first, last = beginning.after + 1, self.bound
        else:
            upto = self.scope.head
            if start is not None:
                upto, recovered = await self.below(start.position)
            await self.backwards(upto)
            self.found.reverse()
            more = self.bound > self.kept
            first, last = self.bound, upto
        return m.Past(
            channel=self.wish.channel,
            events=cast("list[m.Stored]", [msgspec.Raw(each) for each in self.found]),
            first=self.log.text(first),
            last=self.log.text(last),
            more=more,
            recovered=recovered,
        )

    # --- where it begins ------------------------------------------------------------------------------

    async def beginning(self, start: After | Since) -> Beginning:
        """Return after which position to read on, and whether anything from there is gone."""
        starts, scope = self.sources.starts, self.scope
        if isinstance(start, Since):
            since = (start.time - EPOCH) // timedelta(microseconds=1) * 1000
            known = self.index().before(since)
            if known is None:
                await self.turn()
                return await starts.since(start, scope)
            start = After(Position(scope.incarnation, min(known, scope.head)))
        if not self.known(start.position, scope.floor, scope.head):
            await self.turn()
        return await starts.after(start.position, scope)

    async def below(self, position: Position) -> tuple[int, bool]:
        """Return the newest position below one, and whether it is of this stream; else the newest of all."""
        upto = max(0, position.sequence - 1)
        if not self.known(position, 0, self.scope.head + 1):
            await self.turn()
            state = await self.look()
            if position.incarnation != state.incarnation or upto > max(state.last, self.scope.head):
                return self.scope.head, False
            await self.reach(upto)
        return upto, True

    def known(self, position: Position, first: int, last: int) -> bool:
        """Return whether a position is one of these, and nobody has to be asked."""
        return position.incarnation == self.scope.incarnation and first <= position.sequence <= last

    async def reach(self, position: int) -> None:
        """Wait until this broker has received what another one has already sent to the client."""
        with trio.move_on_after(REACH_SECONDS):
            while self.log.position() < position:
                if self.sources.log_of(self.tenant) is not self.log:
                    raise recreated()
                await self.sources.advanced.park()
            return
        raise Unavailable("this broker is behind the position; try again", retry_after=1.0)

    # --- both directions ------------------------------------------------------------------------------

    async def backwards(self, upto: int) -> None:
        """Look from a position, inclusive, towards the beginning."""
        self.step, self.begun, self.bound = -1, upto + 1, upto + 1
        floor = self.floor()
        ticks = self.log.ring.after(at(floor)) if upto > floor else ()
        for count, tick in enumerate(reversed(ticks), 1):
            low = max(sequence_of(tick.base), floor)
            if low < upto:
                self.take(tick, [*indices(self.matching(tick, low, upto))][::-1], low + 1)
            if self.full:
                return
            if not count % SCANNED:
                await trio.lowlevel.checkpoint()
        self.bound = min(self.bound, floor + 1)
        if self.bound > self.kept:
            await self.turn()
            if self.literals:
                await self.fetch_backwards()
            await self.windows_backwards()
            await self.look()

    async def fetch_backwards(self) -> None:
        """Get what the index knows, the newest first."""
        while self.may_read() and self.bound - 1 > (floor := self.index().floor):
            count = min(GETS, self.missing())
            found = self.index().newest(self.subjects(), upto=self.bound - 1, count=count)
            low = found[0] - 1 if len(found) == count else floor
            tick = await self.get(found)
            self.take(tick, range(len(tick.places))[::-1], low + 1)

    async def windows_backwards(self) -> None:
        """Read one window after another, each as wide as should suffice."""
        width, oldest = 2 * self.missing(), self.kept - 1
        while self.may_read() and self.bound - 1 > oldest:
            high = self.bound - 1
            low = max(oldest, high - width)
            most = max(LEAST, min(MOST, 2 * self.missing()))
            tick, upto = await self.window(low, high, most)
            if upto == high:
                self.take(tick, range(len(tick.places))[::-1], low + 1)
            share = max(len(tick.places) / max(1, self.missing()), tick.size / self.most_bytes)
            suffices = int((upto - low) * SPARE / share) if share else WIDER * width
            # Of too many in a window only the oldest have been read: it has to be smaller.
            width = max(1, min(suffices, WIDER * width if upto == high else width // 2))

    async def forwards(self, after: int) -> None:
        """Look from a position, exclusive, towards the end."""
        self.step, self.begun, self.bound = 1, after, after
        if after < self.floor():
            await self.turn()
            while self.may_read() and self.bound < (floor := self.floor()):
                tick, upto = await self.following(floor)
                self.take(tick, range(len(tick.places)), upto)
            await self.look()
        if self.full or self.bound < self.floor():
            return
        for count, tick in enumerate(self.log.ring.after(at(self.bound)), 1):
            upto = sequence_of(tick.head)
            self.take(tick, indices(self.matching(tick, self.bound, upto)), upto)
            if self.full:
                return
            if not count % SCANNED:
                await trio.lowlevel.checkpoint()
        self.bound = max(self.bound, self.scope.head)

    async def following(self, floor: int) -> tuple[Tick, int]:
        """Return the next events below the ring, and up to which position they are all."""
        if not self.literals or self.bound < self.index().floor:
            return await self.window(self.bound, floor, min(MOST, self.missing()))
        count = min(GETS, self.missing())
        found = self.index().oldest(self.subjects(), after=self.bound, upto=floor, count=count)
        return await self.get(found), found[-1] if len(found) == count else floor

    # --- what was found -------------------------------------------------------------------------------

    def take(self, tick: Tick, order: Iterable[int], bound: int) -> None:
        """Add events of a tick until the page is full; else all up to `bound` has been looked at."""
        for index in order:
            sequence = sequence_of(tick.places[index])
            stored_at = self.time(sequence)
            if stored_at is None:
                continue  # it was deleted before it arrived
            event = stored(self.view(tick, index), stored_at)
            if self.found and self.size + len(event) > self.most_bytes:
                self.full, self.bound = True, sequence - self.step
                return
            self.found.append(event)
            self.size += len(event)
            if not self.missing():
                self.full, self.bound = True, sequence
                return
        self.bound = bound

    def view(self, tick: Tick, index: int) -> bytes:
        """Return an event as this user gets it."""
        frame, own = tick.frames[index], tick.own.get(index)
        if own is None or own.id is None or own.user != self.user:
            return frame
        return frames.own(frame, own.user, own.id)

    def missing(self) -> int:
        return self.wish.limit - len(self.found)

    def matching(self, tick: Tick, after: int, upto: int) -> int:
        """Return the events of a tick of the ring that match, after a position up to another."""
        by_channel = tick.by_channel()
        if self.literals:
            masks = [by_channel.get(channel, 0) for channel in self.literals]
        else:
            masks = [mask for channel, mask in by_channel.items() if self.admits(channel)]
        mask = 0
        for each in masks:
            mask |= each
        return mask & ~tick.gone & (1 << tick.before(at(upto))) - 1 & -1 << tick.before(at(after))

    def admits(self, channel: str) -> bool:
        verdict = self.verdicts.get(channel)
        if verdict is None:
            verdict = self.verdicts[channel] = self.scope.admits(channel)
        return verdict

    def time(self, sequence: int) -> int | None:
        return self.times.get(sequence) or self.index().time(sequence)

    def floor(self) -> int:
        """Return the position after which the ring has all events, and their times are known."""
        return max(sequence_of(self.log.ring.floor), self.index().floor)

    def index(self) -> Index:
        """Return where the newest events are. Raise `Unavailable` when that is another stream's."""
        if self.sources.memory.incarnation != self.log.incarnation:
            raise recreated()
        return self.sources.memory.index

    # --- the stream -----------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Wait for the turn to read the stream, once."""
        if not self.entered:
            await self.enter()
            self.entered = True

    def may_read(self) -> bool:
        """Return whether there is something to read for; a page that got nowhere is always read on."""
        return not self.full and (self.reads < self.most_reads or self.bound == self.begun)

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
        for subject in filters(self.sources.starts.names, self.tenant, self.wish.patterns):
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
        names = self.sources.starts.names
        tenants = self.tenant, subjects.BROADCAST
        return [names.subject(tenant, channel) for tenant in tenants for channel in self.literals]


def stored(frame: bytes, stored_at: int) -> bytes:
    """Return an `event` message as an item of a page."""
    return b'%b,"stored_at":"%b"}' % (frames.payload(frame)[HEAD:-2], precisely(stored_at).encode())


def recreated() -> Unavailable:
    return Unavailable("the stream was recreated meanwhile; try again", retry_after=0.1)
