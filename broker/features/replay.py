"""History of one tenant, read from the stream for those that are further back than the ring.

Reads are shared: one at a time for each subject filter, and what was read is kept for a while, so that
many clients that come back together cost one read and not one each.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

import attrs
import trio

from broker import subjects
from broker.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from broker.bus.base import Bus, Record, StreamState
    from broker.features.gate import FairGate
    from broker.ranges import Ranges
    from broker.ring import Tick

PAGE_EVENTS = 256  # 25 µs an event at this size, 60 µs at 16
MAX_FILTERS = 8  # a reader of more patterns reads the whole tenant and picks
KEPT_SECONDS = 10.0
KEPT_BYTES = 8 * 1024 * 1024

Checked: TypeAlias = "tuple[str, Record]"  # a record that is an event, with its channel


@attrs.frozen(kw_only=True)
class Span:
    """All that the filters match after a position up to `upto`, in one tick a filter.

    Up to `trimmed` the stream no longer holds what it once held (0: nothing is known to be gone).
    """

    ticks: Sequence[Tick]
    upto: int
    trimmed: int


@attrs.frozen(kw_only=True)
class Segment:
    """What one filter matches after `after` up to `upto`."""

    after: int
    upto: int
    trimmed: int
    tick: Tick
    read_at: float


@attrs.define(eq=False)
class History:
    """Reads a tenant's history in pages that look like ticks.

    `check` makes an event of a record or answers None (a dead letter); `encode` makes a tick. `gate` bounds
    the reads of the whole process. `remembered` has the tenant's newest events from the feed, after one
    position up to another: a replica that answers late has not got them yet, and does not say so. `look`
    has the stream's state, with what was deleted from it taken out of memory.
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
    kept: dict[str, list[Segment]] = attrs.Factory(dict)  # by subject filter
    order: deque[str] = attrs.Factory(deque)  # the filters of all segments, in the order of reading
    size: int = 0
    locks: WeakValueDictionary[str, trio.Lock] = attrs.Factory(WeakValueDictionary)

    async def span(self, patterns: Iterable[str], *, after: int, below: int) -> Span:
        """The next events of the patterns after a position, none above `below`.

        `below` is where the ring begins: a replica may not have yet what the feed has brought since.
        Raises `Unavailable`.
        """
        segments = [
            await self.segment(each, after=after, below=below)
            for each in filters(self.names, self.tenant, patterns)
        ]
        return Span(
            ticks=[segment.tick for segment in segments if segment.tick.frames],
            upto=min(
                (below, *(segment.upto for segment in segments))
            ),  # one was read for somebody further on
            trimmed=max((segment.trimmed for segment in segments), default=0),
        )

    async def segment(self, subject: str, *, after: int, below: int) -> Segment:
        lock = self.locks.get(subject)
        if lock is None:
            lock = self.locks[subject] = trio.Lock()
        async with lock:
            found = self.find(subject, after)
            if found is None:
                async with self.gate.turn(self.tenant):
                    found = await self.read(subject, after=after, below=below)
                    self.keep(subject, found)  # at once: what is deleted from now on is blanked in there
            return found

    def find(self, subject: str, after: int) -> Segment | None:
        for segment in self.kept.get(subject, ()):
            if segment.after <= after < segment.upto:
                return segment
        return None

    async def read(self, subject: str, *, after: int, below: int) -> Segment:
        page = await self.bus.read(subject, after=after, limit=PAGE_EVENTS)
        # Asked after the read: what has been cut off before cannot have been cut out of the page unseen.
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
        return Segment(
            after=after,
            upto=upto,
            trimmed=min(state.first - 1, below),  # what has left the stream may still be in the ring
            tick=self.encode([event for _, event in sorted(found.items())]),
            read_at=self.clock(),
        )

    def keep(self, subject: str, segment: Segment) -> None:
        self.kept.setdefault(subject, []).append(segment)
        self.order.append(subject)
        self.size += segment.tick.size
        while self.size > KEPT_BYTES and len(self.order) > 1:
            self.drop()

    def blank(self, deleted: Ranges) -> None:
        """Takes deleted events out of what was read."""
        for segments in self.kept.values():
            for segment in segments:
                if segment.tick.frames and deleted.meets(segment.after, segment.upto):
                    self.size -= segment.tick.blank(deleted)

    def clear(self) -> None:
        """Forgets all that was read."""
        while self.order:
            self.drop()

    def expire(self, now: float) -> None:
        """Forgets what was read a while ago."""
        while self.order and self.kept[self.order[0]][0].read_at < now - KEPT_SECONDS:
            self.drop()

    def drop(self) -> None:
        subject = self.order.popleft()
        segments = self.kept[subject]
        self.size -= segments.pop(0).tick.size
        if not segments:
            del self.kept[subject]


def filters(
    names: subjects.Names, tenant: str, patterns: Iterable[str], *, most: int = MAX_FILTERS
) -> list[str]:
    """The subject filters that hold every stored event of the patterns, broadcasts included.

    More than `most` patterns are read as all of the tenant's.
    """
    wanted = list(dict.fromkeys(patterns))
    if len(wanted) <= 4 * MAX_FILTERS:  # comparing each with each has its price
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
    """The patterns without those that others cover."""
    distinct = list(dict.fromkeys(patterns))
    return [
        pattern
        for pattern in distinct
        if not any(other != pattern and subjects.covers(other, pattern) for other in distinct)
    ]
