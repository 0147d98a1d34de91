"""The history of one tenant, read from the stream for readers further back than the ring.

Reads are shared: there is one at a time for each subject filter, and its result is kept for a while, so that
many clients that reconnect together cost one read and not one each. No result is passed to a waiting reader:
it asks again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

import attrs
import trio

from broker import subjects
from broker.errors import Unavailable
from broker.eventlog.places import at
from broker.eventlog.tick import woven
from broker.metrics.meters import RING, STREAM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from broker.bus.base import Bus, Record, StreamState
    from broker.eventlog.gate import FairGate
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.ranges import Ranges

PAGE_EVENTS = 256  # 25 µs an event at this size, 60 µs at 16
RECALLED_BYTES = 131072  # bodies in a page from memory, about: it is encoded while other tasks wait
MAX_FILTERS = 8  # for more patterns the whole tenant is read and filtered
KEPT_SECONDS = 10.0
KEPT_BYTES = 8 * 1024 * 1024

Checked: TypeAlias = "tuple[str, Record]"  # a record that is an event, with its channel
Filters: TypeAlias = "tuple[str, ...]"  # subject filters
EVERYTHING: Filters = ()  # key of segments from memory, which have all events of the tenant


@attrs.frozen(kw_only=True)
class Segment:
    """Everything that some filters match after the position `after` up to `upto`.

    Up to `trimmed` the stream no longer has all events (0: nothing is known to be gone). `size` is its memory
    in bytes; `source` is where it was read.
    """

    after: int
    upto: int
    trimmed: int
    tick: Tick
    size: int
    read_at: float
    source: str = STREAM


@attrs.define(eq=False)
class History:
    """Reads a tenant's history in pages that look like ticks.

    `check` returns a record as an event, or None (a dead letter); `encode` makes a tick. `gate` limits the
    reads of the whole process. `remembered` returns the tenant's newest events from the feed, after one
    position up to another: a lagging replica does not have them yet, and does not say so. `look` returns the
    stream's state, and removes deleted events from memory. `memory` is the position after which memory begins
    (None: it is of another stream), `below` where the ring begins: nothing is read above it.
    """

    tenant: str
    bus: Bus
    names: subjects.Names
    incarnation: str
    gate: FairGate
    look: Callable[[], Awaitable[StreamState]]
    check: Callable[[Record], Checked | None]
    remembered: Callable[[int, int], Iterable[Checked]]
    encode: Callable[[list[Checked]], Tick]
    clock: Callable[[], float]
    memory: Callable[[], int | None]
    below: Callable[[], int]
    kept: dict[Filters, list[Segment]] = attrs.Factory(dict)
    order: deque[Filters] = attrs.Factory(deque)  # the filters of all segments, in the order of reading
    size: int = 0
    underway: list[list[Segment]] = attrs.Factory(list)  # already read, by unfinished fetches
    locks: WeakValueDictionary[Filters, trio.Lock] = attrs.Factory(WeakValueDictionary)

    def find(self, selections: Collection[Selection], after: int) -> Segment | None:
        """Return the segment at hand after a position, for these selections; None if it must be read."""
        return self.held(self.filters(selections), after) or self.recall(after)

    def recall(self, after: int) -> Segment | None:
        """Return the feed's memory after a position, whatever the selections; None below the memory.

        A reader just below a small ring need not wait for the stream, and advances even while NATS is away.
        """
        memory, below = self.memory(), self.below()
        if memory is None or not memory <= after < below:
            return None
        found = self.held(EVERYTHING, after)
        if found is None:
            events: list[Checked] = []
            size, upto = 0, below
            for event in self.remembered(after, below):
                events.append(event)
                size += len(event[1][2])
                if len(events) == PAGE_EVENTS or size >= RECALLED_BYTES:
                    upto = event[1][0]
                    break
            tick = self.encode(events)
            found = Segment(
                after=after,
                upto=upto,
                trimmed=0,
                tick=tick,
                size=tick.size,
                read_at=self.clock(),
                source=RING,
            )
            self.keep(EVERYTHING, found)
        return found

    async def fetch(self, selections: Collection[Selection], after: int) -> None:
        """Read what follows a position, so that `find` finds it. Raise `Unavailable`."""
        wanted = self.filters(selections)
        parts: list[Segment] = []
        self.underway.append(parts)
        try:
            for each in wanted:
                parts.append(await self.part((each,), after))  # noqa: PERF401 - each at once, see `blank`
        finally:
            self.underway = [others for others in self.underway if others is not parts]
        if len(parts) > 1 and self.held(wanted, after) is None:
            upto = min(part.upto for part in parts)
            tick = woven([part.tick for part in parts], after=at(after), upto=at(upto))
            self.keep(
                wanted,
                Segment(
                    after=after,
                    upto=upto,
                    trimmed=max(part.trimmed for part in parts),
                    tick=tick,
                    size=tick.size,  # it may outlive the parts, with which it shares frames
                    read_at=self.clock(),
                ),
            )

    def filters(self, selections: Collection[Selection]) -> Filters:
        return tuple(filters(self.names, self.tenant, [each.pattern for each in selections]))

    async def part(self, wanted: Filters, after: int) -> Segment:
        """Return what one filter matches after a position. One task reads it; others wait for that."""
        lock = self.locks.get(wanted)
        if lock is None:
            lock = self.locks[wanted] = trio.Lock()
        async with lock:
            found = self.held(wanted, after)
            if found is None:
                async with self.gate.turn(self.tenant):
                    found = await self.read(wanted[0], after)
                    self.keep(wanted, found)  # at once, so that later deletions are blanked in it
            return found

    def held(self, wanted: Filters, after: int) -> Segment | None:
        for segment in self.kept.get(wanted, ()):
            if segment.after <= after < segment.upto:
                return segment
        return None

    async def read(self, subject: str, after: int) -> Segment:
        below = self.below()
        page = await self.bus.read(subject, after=after, limit=PAGE_EVENTS)
        # Requested after the read, so that any trimming before the read is included.
        state = await self.look()
        if state.incarnation != self.incarnation:
            raise Unavailable("the stream was recreated")
        upto = min(below, page.records[-1][0]) if page.pending else below
        found: dict[int, Checked] = {}
        for event in self.remembered(after, upto):
            if subjects.covers(subject, event[1][1]):
                found[event[1][0]] = event
        for record in page.records:
            if record[0] <= upto and record[0] not in found and (checked := self.check(record)):
                found[record[0]] = checked
        tick = self.encode([event for _, event in sorted(found.items())])
        return Segment(
            after=after,
            upto=upto,
            trimmed=min(state.first - 1, below),  # the ring may have events that have left the stream
            tick=tick,
            size=tick.size,
            read_at=self.clock(),
        )

    def keep(self, wanted: Filters, segment: Segment) -> None:
        self.kept.setdefault(wanted, []).append(segment)
        self.order.append(wanted)
        self.size += segment.size
        while self.size > KEPT_BYTES and len(self.order) > 1:  # the newest is about to be asked for
            self.drop()

    def blank(self, deleted: Ranges) -> None:
        """Remove deleted events from what was read."""
        for segments in (*self.kept.values(), *self.underway):
            for segment in segments:
                if segment.tick.frames and deleted.meets(segment.after, segment.upto):
                    segment.tick.blank(deleted)

    def clear(self) -> None:
        """Forget everything that was read."""
        while self.order:
            self.drop()

    def expire(self, now: float) -> None:
        """Forget what was read a while ago."""
        while self.order and self.kept[self.order[0]][0].read_at < now - KEPT_SECONDS:
            self.drop()

    def drop(self) -> None:
        wanted = self.order.popleft()
        segments = self.kept[wanted]
        self.size -= segments.pop(0).size
        if not segments:
            del self.kept[wanted]


def filters(
    names: subjects.Names, tenant: str, patterns: Iterable[str], *, most: int = MAX_FILTERS
) -> list[str]:
    """Return the subject filters that match every stored event of the patterns, including broadcasts.

    For more than `most` patterns they match all events of the tenant.
    """
    wanted = list(dict.fromkeys(patterns))
    if len(wanted) <= 4 * MAX_FILTERS:  # pairwise comparison is expensive
        wanted = narrowed(wanted)
    if len(wanted) > most:
        wanted = [">"]
    found = [names.subject(tenant, pattern) for pattern in wanted]
    found += [
        names.subject(subjects.BROADCAST, pattern)
        for pattern in wanted
        if not pattern.startswith(f"{subjects.USERS}.")
    ]
    return found


def narrowed(patterns: Iterable[str]) -> list[str]:
    """Return the patterns without those that others cover."""
    distinct = list(dict.fromkeys(patterns))
    return [
        pattern
        for pattern in distinct
        if not any(other != pattern and subjects.covers(other, pattern) for other in distinct)
    ]
