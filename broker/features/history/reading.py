"""One page of history: the newest events below a position, or those that follow one.

The newest events are in the ring, the rest is read from the stream: what the index of the feed knows by exact
gets, the rest in windows of sequences, each as wide as a sample of the events there suggests. A filter is
evaluated on what was found, in short turns, and counts as work.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, cast

import attrs
import msgspec
import trio

from broker.errors import Unavailable
from broker.eventlog.places import at, sequence_of
from broker.eventlog.tick import indices
from broker.features.history.stream import GETS, recreated
from broker.turns import Turn
from broker.wire import frames
from broker.wire import messages as m
from broker.wire.positions import Position
from broker.wire.starts import After, Since
from broker.wire.times import precisely

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.eventlog.starts import Beginning
    from broker.eventlog.tick import Tick
    from broker.features.history.stream import Stream
    from broker.filters import Filter

WIDEST = 4**10  # sequences of a window
FILTERED = 256  # events to be looked at, where nobody knows how many of them pass
EVALUATED_BYTES = 262_144  # of events that a filter is evaluated on: as much work as a read
SPARE = 1.2  # more than is expected to suffice
REACH_SECONDS = 5.0  # another broker may be milliseconds ahead of this one
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

    With a `filter` only those that pass it. `rights` are the allowed and the denied patterns by which that
    was decided; `channel` names the patterns in the reply.
    """

    patterns: dict[str, tuple[str, ...]]
    refused: list[m.Refused]
    rights: tuple[tuple[str, ...], tuple[str, ...]]
    start: Start
    limit: int
    filter: Filter | None
    channel: m.OneOrMany


@attrs.define(eq=False, kw_only=True)
class Reading:
    """A page that is being read.

    `user` is whose own events have an id here. `step` is 1 or -1, the direction; `bound` is the last position
    that has been looked at in that direction, all between it and the start included. `evaluated` is the size
    of the events on which a filter was evaluated.
    """

    stream: Stream
    user: str | None
    wish: Wish
    most_bytes: int
    most_reads: int
    step: int = -1
    begun: int = 0
    bound: int = 0
    found: list[bytes] = attrs.Factory(list)
    size: int = 0
    evaluated: int = 0
    full: bool = False
    turn: Turn = attrs.Factory(Turn)

    async def read(self) -> m.Past:
        """Return the page. Raise `Unavailable`, and what `enter` raises."""
        start, recovered = self.wish.start, True
        if isinstance(start, After | Since):
            beginning = await self.beginning(start)
            await self.reach(beginning.after)
            await self.forwards(beginning.after)
            recovered = beginning.recovered and beginning.after >= self.stream.kept - 1
            more = self.bound < (self.stream.log.position() if self.full else self.stream.scope.head)
            first, last = beginning.after + 1, self.bound
        else:
            upto = self.stream.scope.head
            if start is not None:
                upto, recovered = await self.below(start.position)
            await self.backwards(upto)
            self.found.reverse()
            more = self.bound > self.stream.kept
            first, last = self.bound, upto
        return m.Past(
            channel=self.wish.channel,
            events=cast("list[m.Stored]", [msgspec.Raw(each) for each in self.found]),
            first=self.stream.log.text(first),
            last=self.stream.log.text(last),
            more=more,
            recovered=recovered,
        )

    # --- where it begins ------------------------------------------------------------------------------

    async def beginning(self, start: After | Since) -> Beginning:
        """Return after which position to read on, and whether anything from there is gone."""
        starts, scope = self.stream.sources.starts, self.stream.scope
        if isinstance(start, Since):
            since = (start.time - EPOCH) // timedelta(microseconds=1) * 1000
            known = self.stream.index().before(since)
            if known is None:
                await self.stream.begin()
                return await starts.since(start, scope)
            start = After(Position(scope.incarnation, min(known, scope.head)))
        if not self.known(start.position, scope.floor, scope.head):
            await self.stream.begin()
        return await starts.after(start.position, scope)

    async def below(self, position: Position) -> tuple[int, bool]:
        """Return the newest position below one, and whether it is of this stream; else the newest of all."""
        upto = max(0, position.sequence - 1)
        if not self.known(position, 0, self.stream.scope.head + 1):
            await self.stream.begin()
            state = await self.stream.look()
            if position.incarnation == state.incarnation != self.stream.scope.incarnation:
                raise recreated()
            if position.incarnation != state.incarnation or upto > max(state.last, self.stream.scope.head):
                return self.stream.scope.head, False
            await self.reach(upto)
        return upto, True

    def known(self, position: Position, first: int, last: int) -> bool:
        """Return whether a position is one of these, and nobody has to be asked."""
        return position.incarnation == self.stream.scope.incarnation and first <= position.sequence <= last

    async def reach(self, position: int) -> None:
        """Wait until this broker has received what another one has already sent to the client."""
        with trio.move_on_after(REACH_SECONDS):
            while self.stream.log.position() < position:
                if self.stream.sources.log_of(self.stream.tenant) is not self.stream.log:
                    raise recreated()
                await self.stream.sources.advanced.park()
            return
        raise Unavailable("this broker is behind the position; try again", retry_after=1.0)

    # --- both directions ------------------------------------------------------------------------------

    async def backwards(self, upto: int) -> None:
        """Look from a position, inclusive, towards the beginning."""
        self.step, self.begun, self.bound = -1, upto + 1, upto + 1
        floor = self.stream.floor()
        for tick in reversed(self.stream.log.ring.after(at(floor)) if upto > floor else ()):
            low = max(sequence_of(tick.base), self.stream.floor())
            if low < self.bound - 1:
                await self.take(tick, [*indices(self.matching(tick, low, upto))][::-1], low + 1)
            if self.full:
                return
            await self.turn.pass_on()
        self.bound = min(self.bound, self.stream.floor() + 1)
        if self.bound > self.stream.kept:
            await self.stream.begin()
            await self.fetch_backwards()
            await self.search_backwards()
            await self.stream.look()

    async def fetch_backwards(self) -> None:
        """Get what the index knows, the newest first."""
        stream = self.stream
        while self.may_read() and self.bound - 1 > stream.index().floor:
            found, low = await stream.newest(self.bound - 1, min(GETS, self.wanted()), self.turn)
            tick = await stream.get(found)
            await self.take(tick, range(len(tick.places))[::-1], low + 1)

    async def search_backwards(self) -> None:
        """Search one window after another, each as wide as should suffice."""
        while self.may_read() and self.bound > self.stream.kept:
            high = self.bound - 1
            low = max(self.stream.kept - 1, high - await self.width(high))
            tick, low, _ = await self.stream.window(low, high, self.step)
            await self.take(tick, range(len(tick.places))[::-1], low + 1)

    async def width(self, near: int) -> int:
        """Return in how many sequences from a position on there should be what is missing."""
        gap, size = await self.stream.gauge(near, self.step)
        wanted = min(self.wanted(), (self.most_bytes - self.size) / max(1.0, size))
        return int(max(1.0, min(WIDEST, wanted * SPARE * gap) / self.stream.narrower))

    async def forwards(self, after: int) -> None:
        """Look from a position, exclusive, towards the end."""
        self.step, self.begun, self.bound = 1, after, after
        if after < self.stream.floor():
            await self.stream.begin()
            while self.may_read() and self.bound < (floor := self.stream.floor()):
                tick, upto = await self.following(floor)
                await self.take(tick, range(len(tick.places)), upto)
            await self.stream.look()
        if self.full or self.bound < self.stream.floor():
            return
        for tick in self.stream.log.ring.after(at(self.bound)):
            upto = sequence_of(tick.head)
            await self.take(tick, indices(self.matching(tick, self.bound, upto)), upto)
            if self.full:
                return
            await self.turn.pass_on()
            if self.bound < self.stream.floor():
                return  # the times of what follows have been forgotten meanwhile
        self.bound = max(self.bound, self.stream.scope.head)

    async def following(self, floor: int) -> tuple[Tick, int]:
        """Return the next events below the ring, and up to which position they are all."""
        stream = self.stream
        if self.bound < stream.index().floor:
            high = min(floor, self.bound + await self.width(self.bound))
            tick, _, high = await stream.window(self.bound, high, self.step)
            return tick, high
        found, high = await stream.oldest(self.bound, floor, min(GETS, self.wanted()), self.turn)
        return await stream.get(found), high

    def may_read(self) -> bool:
        """Return whether there is something to read for; a page that got nowhere is always read on."""
        work = self.stream.reads + self.evaluated // EVALUATED_BYTES
        return not self.full and (work < self.most_reads or self.bound == self.begun)

    # --- what was found -------------------------------------------------------------------------------

    async def take(self, tick: Tick, order: Iterable[int], bound: int) -> None:
        """Add events of a tick until the page is full; else all up to `bound` has been looked at."""
        times = ((index, self.stream.time(sequence_of(tick.places[index]))) for index in order)
        # At once where others have a turn meanwhile: times may be forgotten.
        for index, stored_at in times if self.wish.filter is None else [*times]:
            if stored_at is None or not tick.frames[index]:
                continue  # it was deleted: before it arrived, or meanwhile
            sequence = sequence_of(tick.places[index])
            passes = self.passes(tick.frames[index])
            if passes:
                event = stored(self.view(tick, index), stored_at)
                if self.found and self.size + len(event) > self.most_bytes:
                    self.full, self.bound = True, sequence - self.step
                    return
                self.found.append(event)
                self.size += len(event)
            if not self.missing() or self.evaluated >= self.most_reads * EVALUATED_BYTES:
                self.full, self.bound = True, sequence
                return
            if self.wish.filter is not None:
                await self.turn.pass_on()
        self.bound = bound

    def passes(self, frame: bytes) -> bool:
        """Return whether an event passes the filter."""
        if self.wish.filter is None:
            return True
        self.evaluated += len(frame)
        return self.wish.filter.passes(frames.event_of(frame))

    def view(self, tick: Tick, index: int) -> bytes:
        """Return an event as this user gets it."""
        frame, own = tick.frames[index], tick.own.get(index)
        if own is None or own.id is None or own.user != self.user:
            return frame
        return frames.own(frame, own.user, own.id)

    def missing(self) -> int:
        return self.wish.limit - len(self.found)

    def wanted(self) -> int:
        """Return how many more events should be looked at."""
        return self.missing() if self.wish.filter is None else FILTERED

    def matching(self, tick: Tick, after: int, upto: int) -> int:
        """Return the events of a tick of the ring that match, after a position up to another."""
        by_channel = tick.by_channel()
        if self.stream.literals:
            masks = [by_channel.get(channel, 0) for channel in self.stream.literals]
        else:
            masks = [mask for channel, mask in by_channel.items() if self.stream.admits(channel)]
        mask = 0
        for each in masks:
            mask |= each
        return mask & ~tick.gone & (1 << tick.before(at(upto))) - 1 & -1 << tick.before(at(after))


def stored(frame: bytes, stored_at: int) -> bytes:
    """Return an `event` message as an item of a page."""
    return b'%b,"stored_at":"%b"}' % (frames.payload(frame)[HEAD:-2], precisely(stored_at).encode())
