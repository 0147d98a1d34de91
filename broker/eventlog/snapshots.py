"""Snapshots: the newest event of each channel, read once for all who ask for the same, and bounded.

A *base* is the newest event of each channel of some patterns at a position, encoded, in ticks. Whoever asks
for the same patterns later gets the same base, without what has been superseded since; the newer events it
reads from the ring or the stream, like any catch-up. So a thousand clients that come back at once cost
one read and one encoding, and those of them that read nothing hold the same bytes. What all bases
of the process hold together is bounded; who finds no room is told to ask again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakSet

import attrs
import trio

from broker.config.sections import SNAPSHOT_BYTES
from broker.errors import SnapshotTooLarge, Unavailable
from broker.eventlog.gate import FairGate
from broker.eventlog.places import at, sequence_of
from broker.eventlog.tick import OVERHEAD as TICK_OVERHEAD
from broker.eventlog.tick import Tick, indices
from broker.metrics.statistics import Snapshots as Statistics

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from broker.bus.base import Record
    from broker.eventlog.history import Checked
    from broker.eventlog.ring import Ring
    from broker.eventlog.selection import Selection
    from broker.eventlog.starts import Scope
    from broker.eventlog.tick import Matcher
    from broker.ranges import Ranges

PAGE_EVENTS = 256
PAGE_BYTES = 32 * 1024
REBASE_SECONDS = 10.0  # an older base is replaced by one at the position that is asked for
NEWER_EVENTS = 256  # each client notes those that it gets beyond a base; of more the next base is made,
NEWER_PART = 16  # where they are more than this part of it, too
OVERHEAD = 330  # bytes that an event costs beside what its tick counts: its channel, and where that is
KEPT_SECONDS = 10.0  # without anybody who asks for it
READS_AT_ONCE = 2  # each has its records and their frames in memory, for a moment
FULL_SECONDS = 2.0  # after which asking again is worth it: clients that read are soon done
TRIES = 3
TOMBSTONE_END = b'"event":null}}'

Event: TypeAlias = "tuple[int, bytes]"  # sequence and frame
Patterns: TypeAlias = "frozenset[tuple[str, tuple[str, ...]]]"  # each with what is denied in it


@attrs.define(eq=False, kw_only=True)
class Base:
    """The newest event of each channel at the position `head`, in `pages` by position.

    `where` has the index of each channel's event over all pages, `starts` that of each page's first event.
    """

    tenant: str
    pages: Sequence[Tick]
    head: int
    where: Mapping[str, int]
    starts: Sequence[int]
    size: int
    made: float

    def blank(self, deleted: Ranges) -> bool:
        """Takes deleted events out; whether there were any."""
        freed = sum(page.blank(deleted) for page in self.pages)
        self.size -= freed
        return freed > 0

    def move(self, matcher: Matcher) -> None:
        """Match it against other selections from now on."""
        for page in self.pages:
            if page.matcher is not matcher:
                page.move(matcher)


@attrs.frozen(kw_only=True, eq=False)
class Newer:
    """Of the events between a base and `head`, by sequence, those that nothing has superseded."""

    sequences: frozenset[int]
    head: int


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """What one client gets: a base, without the events at the indices in `superseded`, and what is `newer`.

    The base stands for all events up to the position `head`.
    """

    base: Base
    head: int
    superseded: int = 0
    newer: Newer | None = None

    def after(self, place: int) -> Sequence[tuple[Tick, int]]:
        """Return the pages with something after a place, each with the events that are not superseded."""
        base = self.base
        first = bisect_right(base.pages, place, key=attrgetter("head"))
        return [
            (page, ~(self.superseded >> start))
            for page, start in zip(base.pages[first:], base.starts[first:], strict=True)
        ]


@attrs.define(eq=False)
class Holdings:
    """What the snapshots of the process hold, within `limit` bytes, each tenant's within half of that.

    `read` counts those that were read from NATS, `shared` those that came of a base in memory, `refused`
    those that found no room.
    """

    limit: int
    bases: WeakSet[Base] = attrs.Factory(WeakSet)  # that somebody holds
    tenants: WeakSet[Snapshots] = attrs.Factory(WeakSet)
    gate: FairGate = attrs.Factory(lambda: FairGate(READS_AT_ONCE))
    reading: int = 0
    read: int = 0
    shared: int = 0
    refused: int = 0

    def size(self, tenant: str | None = None) -> int:
        """Bytes that are held, by a tenant or by all."""
        return sum(base.size for base in self.bases if tenant in (None, base.tenant))

    def fits(self, tenant: str, size: int) -> bool:
        """Whether there is room for so many bytes more, beside what is being read."""
        together = self.size() + size + self.reading * SNAPSHOT_BYTES
        return together <= self.limit and self.size(tenant) + size <= self.limit // 2

    def make_room(self, tenant: str, size: int) -> None:
        """Lets go of what nobody reads, if need be. Raises `Unavailable` where that is not enough."""
        if not self.fits(tenant, size):
            for each in self.tenants:
                each.expire(math.inf)
        if not self.fits(tenant, size):
            self.refused += 1
            raise Unavailable(
                "snapshots wait for clients that do not read them, and there is no room for another; "
                "ask again",
                retry_after=FULL_SECONDS,
            )

    def statistics(self) -> Statistics:
        return Statistics(
            bytes=self.size(),
            limit=self.limit,
            by={"read": self.read, "shared": self.shared, "refused": self.refused},
        )

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """A tenant's turn to read, and room for what it reads. Raises `Unavailable` where there is none."""
        async with self.gate.turn(tenant):
            self.make_room(tenant, SNAPSHOT_BYTES)
            self.reading += 1
            try:
                yield
            finally:
                self.reading -= 1


@attrs.define(eq=False)
class Line:
    """The bases of the same patterns. `kept` is there for whoever asks next, `used` is when one did."""

    lock: trio.Lock = attrs.Factory(trio.Lock)
    bases: WeakSet[Base] = attrs.Factory(WeakSet)
    kept: Base | None = None
    used: float = 0.0

    def forget(self, base: Base | None = None) -> None:
        """Whoever asks next gets another than this one, or (None) than any."""
        self.bases = WeakSet(each for each in self.bases if base and each is not base)
        self.kept = self.kept if base and self.kept is not base else None

    def base(self, position: int, floor: int) -> Base | None:
        """The newest from which a position can be reached, where the ring has all above `floor`."""
        found = [each for each in self.bases if each.head == position or floor <= each.head <= position]
        return max(found, key=attrgetter("head"), default=None)


@attrs.define(eq=False, kw_only=True)
class Snapshots:
    """The snapshots of a tenant, with one fan-out.

    `read` has the newest record of each channel below the ring, `encode` makes a tick of such. `deleted`
    says whether a sequence has left the stream. `remembered` has the tenant's newest events, after one
    position up to another, as long as the first is not below `memory`.
    """

    tenant: str
    holdings: Holdings
    ring: Ring
    matcher: Matcher
    read: Callable[[Scope], Awaitable[Mapping[str, Record]]]
    encode: Callable[[list[Checked]], Tick]
    deleted: Callable[[int], bool]
    remembered: Callable[[int, int], Iterable[Checked]]
    memory: Callable[[], int]
    clock: Callable[[], float]
    lines: dict[Patterns, Line] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        self.holdings.tenants.add(self)

    async def take(
        self, selections: Collection[Selection], scope: Callable[[], Scope], *, most: int
    ) -> Snapshot:
        """A snapshot at the head of the scope, as that is in the end, of at most so many channels.

        Raises `Unavailable` and `SnapshotTooLarge`.
        """
        line = self.lines.setdefault(frozenset(scope().patterns.items()), Line())
        async with line.lock:
            line.used = self.clock()
            base = line.base(scope().head, sequence_of(self.ring.floor))
            if base is None:
                base = await self.load(line, selections, scope)
                self.holdings.read += 1
            else:
                self.holdings.shared += 1
            snapshot = self.renew(line, base, self.newest(selections, base.head, scope().head), scope().head)
        newer = len(snapshot.newer.sequences) if snapshot.newer else 0
        count = len(snapshot.base.where) - snapshot.superseded.bit_count() + newer
        if count > most:
            raise SnapshotTooLarge(f"{count} channels; a snapshot has at most {most}; ask for fewer")
        return snapshot

    async def load(self, line: Line, selections: Collection[Selection], scope: Callable[[], Scope]) -> Base:
        for _ in range(TRIES):
            async with self.holdings.place(self.tenant):
                wanted = scope()
                records = [*(await self.read(wanted)).items()]
                found: dict[str, Event] = {}
                for start in range(0, len(records), PAGE_EVENTS):
                    found.update(events_of(self.encode(records[start : start + PAGE_EVENTS])))
                    await trio.lowlevel.checkpoint()  # ten thousand take long, and others have their turns
                del records
                now = scope()
                if min(now.floor, self.memory()) > wanted.floor:
                    continue  # what has left the ring meanwhile is not known
                left = self.remembered(wanted.floor, now.floor)
                found.update(events_of(self.encode([each for each in left if now.admits(each[0])])))
                newest = self.newest(selections, max(wanted.floor, now.floor), now.head)
                below = [each for each in found.items() if each[0] not in newest]
                held = [each for each in below if not self.deleted(each[1][0])]
                base = self.add(line, [*held, *newest.items()], now.head)
                if len(held) < len(below):
                    line.forget()  # before what is gone there may have been others: who asks next reads again
                return base
        raise Unavailable("events come too fast for this snapshot; try again", retry_after=1.0)

    def renew(self, line: Line, base: Base, newest: Mapping[str, Event], head: int) -> Snapshot:
        """A snapshot at a position that has `newest` beyond the base, which is replaced when it is old.

        Raises `Unavailable` where that must be, and there is no room for another.
        """
        old = self.clock() >= base.made + REBASE_SECONDS
        size = base.size + sum(map(size_of, newest.values()))
        many = len(newest) > max(NEWER_EVENTS, len(base.where) // NEWER_PART)
        if many:
            self.holdings.make_room(self.tenant, size)
        if many or (newest and old and self.holdings.fits(self.tenant, size)):
            left = [each for page in base.pages for each in events_of(page) if each[0] not in newest]
            base, newest = self.add(line, [*left, *newest.items()], head), {}
        if not newest:
            return Snapshot(base=base, head=head)
        newer = frozenset(sequence for sequence, frame in newest.values() if not is_tombstone(frame))
        return Snapshot(
            base=base,
            head=base.head,
            superseded=sum(1 << base.where[channel] for channel in newest if channel in base.where),
            newer=Newer(sequences=newer, head=head),
        )

    def add(self, line: Line, events: Iterable[tuple[str, Event]], head: int) -> Base:
        """Makes the base of these events, the line's from now on."""
        base = make_base(events, tenant=self.tenant, head=head, matcher=self.matcher, now=self.clock())
        self.holdings.bases.add(base)
        line.bases.add(base)
        line.kept = base
        return base

    def newest(self, selections: Collection[Selection], after: int, upto: int) -> dict[str, Event]:
        """The newest event of each channel in the ring after a position up to another."""
        found: dict[str, Event] = {}
        if upto <= after or upto < sequence_of(self.ring.floor):
            return found
        for tick in self.ring.after(at(after)):
            for index in indices(tick.share(selections, after=at(after), upto=at(upto))):
                found[tick.channels[index]] = (sequence_of(tick.places[index]), tick.frames[index])
        return found

    def blank(self, deleted: Ranges) -> None:
        """Takes deleted events out. Who asks next gets what was there before them, by another read."""
        for base in self.holdings.bases:
            if base.tenant == self.tenant and base.blank(deleted):
                for line in self.lines.values():
                    line.forget(base)

    def expire(self, before: float) -> None:
        """Lets go of what nobody has asked for since then."""
        for patterns, line in list(self.lines.items()):
            if line.used < before:
                line.forget()
                if not line.lock.locked():
                    del self.lines[patterns]


def make_base(
    events: Iterable[tuple[str, Event]], *, tenant: str, head: int, matcher: Matcher, now: float
) -> Base:
    """The base at a position of events, each with its channel, in any order; tombstones are left out."""
    kept = sorted(
        (sequence, channel, frame) for channel, (sequence, frame) in events if not is_tombstone(frame)
    )
    pages, starts = [], []
    for start, end in cuts([len(frame) for _, _, frame in kept]):
        sequences, channels, frames = map(list, zip(*kept[start:end], strict=True))
        page = Tick(
            base=0,
            head=at(sequences[-1]),
            places=[*map(at, sequences)],
            channels=channels,
            frames=frames,
            masks={},
            serial=0,  # who gets what of it is worked out when it is sent
            matcher=matcher,
            time=now,
        )
        pages.append(page)
        starts.append(start)
    return Base(
        tenant=tenant,
        pages=pages,
        head=head,
        where={channel: index for index, (_, channel, _) in enumerate(kept)},
        starts=starts,
        size=sum(page.size for page in pages) + OVERHEAD * len(kept),
        made=now,
    )


def events_of(tick: Tick) -> list[tuple[str, Event]]:
    return [*zip(tick.channels, zip(map(sequence_of, tick.places), tick.frames, strict=True), strict=True)]


def size_of(event: Event) -> int:
    return len(event[1]) + TICK_OVERHEAD + OVERHEAD


def is_tombstone(frame: bytes) -> bool:
    return frame.endswith(TOMBSTONE_END)


def cuts(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where pages begin and end, by the sizes of all frames."""
    start = size = 0
    for index, each in enumerate(sizes):
        if index > start and (index - start == PAGE_EVENTS or size + each > PAGE_BYTES):
            yield start, index
            start, size = index, 0
        size += each
    if sizes:
        yield start, len(sizes)
