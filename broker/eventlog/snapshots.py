"""Snapshots: the newest event of each channel, read once for all clients that request the same, within
limits.

A *base* is the newest event of each channel of some patterns at a position, encoded, in ticks. A client that
requests the same patterns later gets the same base, without what has been superseded since; it reads the
newer events from the ring or the stream, like any catch-up. So a thousand clients that reconnect at once cost
one read and one encoding, and those that do not read hold the same bytes. The memory of all bases of the
process is limited; when there is no room, clients are told to retry.
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
REBASE_SECONDS = 10.0  # an older base is replaced by one at the requested position
NEWER_EVENTS = 256  # each client notes those that it gets beyond a base; of more the next base is made,
NEWER_PART = 16  # where they are more than this part of it, too
OVERHEAD = 330  # bytes of an event besides those in its tick: its channel and the channel's index
KEPT_SECONDS = 10.0  # without a request for it
READS_AT_ONCE = 2  # each briefly has its records and their frames in memory
FULL_SECONDS = 2.0  # until a retry is worth while: clients that read are soon done
TRIES = 3
TOMBSTONE_END = b'"event":null}}'

Event: TypeAlias = "tuple[int, bytes]"  # sequence and frame
Patterns: TypeAlias = "frozenset[tuple[str, tuple[str, ...]]]"  # each with what is denied in it


@attrs.define(eq=False, kw_only=True)
class Base:
    """The newest event of each channel at the position `head`, in `pages` by position.

    `where` has the index of each channel's event over all pages, `starts` the index of each page's first
    event.
    """

    tenant: str
    pages: Sequence[Tick]
    head: int
    where: Mapping[str, int]
    starts: Sequence[int]
    size: int
    made: float

    def blank(self, deleted: Ranges) -> bool:
        """Remove deleted events; return whether there were any."""
        freed = sum(page.blank(deleted) for page in self.pages)
        self.size -= freed
        return freed > 0

    def move(self, matcher: Matcher) -> None:
        """Match against the selections of another log from now on."""
        for page in self.pages:
            if page.matcher is not matcher:
                page.move(matcher)


@attrs.frozen(kw_only=True, eq=False)
class Newer:
    """The events between a base and `head`, by sequence, that have not been superseded."""

    sequences: frozenset[int]
    head: int


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """The snapshot for one client: a base, without the events at the indices in `superseded`, and what is
    `newer`.

    The base stands for all events up to the position `head`.
    """

    base: Base
    head: int
    superseded: int = 0
    newer: Newer | None = None

    def after(self, place: int) -> Sequence[tuple[Tick, int]]:
        """Return the pages with something after a place, each with the events not superseded."""
        base = self.base
        first = bisect_right(base.pages, place, key=attrgetter("head"))
        return [
            (page, ~(self.superseded >> start))
            for page, start in zip(base.pages[first:], base.starts[first:], strict=True)
        ]


@attrs.define(eq=False)
class Holdings:
    """The memory of all snapshots of the process, within `limit` bytes, each tenant's within half of that.

    `read` counts snapshots read from NATS, `shared` those from a base in memory, `refused` those without
    room.
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
        """Return the bytes held, by one tenant or by all."""
        return sum(base.size for base in self.bases if tenant in (None, base.tenant))

    def fits(self, tenant: str, size: int) -> bool:
        """Return whether there is room for `size` more bytes, besides what is being read."""
        together = self.size() + size + self.reading * SNAPSHOT_BYTES
        return together <= self.limit and self.size(tenant) + size <= self.limit // 2

    def make_room(self, tenant: str, size: int) -> None:
        """Release what no client is reading, if necessary. Raises `Unavailable` if that is not enough."""
        if not self.fits(tenant, size):
            for each in self.tenants:
                each.expire(math.inf)
        if not self.fits(tenant, size):
            self.refused += 1
            raise Unavailable(
                "there is no room for another snapshot while others wait for clients to read them; try again",
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
        """Wait for a tenant's turn to read, and reserve memory. Raises `Unavailable` if there is none."""
        async with self.gate.turn(tenant):
            self.make_room(tenant, SNAPSHOT_BYTES)
            self.reading += 1
            try:
                yield
            finally:
                self.reading -= 1


@attrs.define(eq=False)
class Line:
    """The bases of the same patterns. `kept` is held for the next request, `used` is the time of the last."""

    lock: trio.Lock = attrs.Factory(trio.Lock)
    bases: WeakSet[Base] = attrs.Factory(WeakSet)
    kept: Base | None = None
    used: float = 0.0

    def forget(self, base: Base | None = None) -> None:
        """Do not use this base (None: any base) for later requests."""
        self.bases = WeakSet(each for each in self.bases if base and each is not base)
        self.kept = self.kept if base and self.kept is not base else None

    def base(self, position: int, floor: int) -> Base | None:
        """Return the newest base from which a position can be reached, if the ring begins at `floor`."""
        found = [each for each in self.bases if each.head == position or floor <= each.head <= position]
        return max(found, key=attrgetter("head"), default=None)


@attrs.define(eq=False, kw_only=True)
class Snapshots:
    """The snapshots of a tenant, for one event log.

    `read` returns the newest record of each channel below the ring, `encode` makes a tick of records.
    `deleted` says whether a sequence has left the stream. `remembered` returns the tenant's newest events,
    after one position up to another, as long as the first is not below `memory`.
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

    async def get(
        self, selections: Collection[Selection], scope: Callable[[], Scope], *, most: int
    ) -> Snapshot:
        """Return a snapshot at the head that the scope has in the end, of at most `most` channels.

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
            raise SnapshotTooLarge(f"{count} channels; a snapshot has at most {most}; request fewer")
        return snapshot

    async def load(self, line: Line, selections: Collection[Selection], scope: Callable[[], Scope]) -> Base:
        for _ in range(TRIES):
            async with self.holdings.place(self.tenant):
                wanted = scope()
                records = [*(await self.read(wanted)).items()]
                found: dict[str, Event] = {}
                for start in range(0, len(records), PAGE_EVENTS):
                    found.update(events_of(self.encode(records[start : start + PAGE_EVENTS])))
                    await trio.lowlevel.checkpoint()  # ten thousand take long: let other tasks run
                del records
                now = scope()
                if min(now.floor, self.memory()) > wanted.floor:
                    continue  # what has left the ring meanwhile is unknown
                left = self.remembered(wanted.floor, now.floor)
                found.update(events_of(self.encode([each for each in left if now.admits(each[0])])))
                newest = self.newest(selections, max(wanted.floor, now.floor), now.head)
                below = [each for each in found.items() if each[0] not in newest]
                held = [each for each in below if not self.deleted(each[1][0])]
                base = self.add(line, [*held, *newest.items()], now.head)
                if len(held) < len(below):
                    line.forget()  # older events may take their place: the next request reads again
                return base
        raise Unavailable("events arrive too fast for this snapshot; try again", retry_after=1.0)

    def renew(self, line: Line, base: Base, newest: Mapping[str, Event], head: int) -> Snapshot:
        """Return a snapshot at `head`, given the `newest` events beyond the base; an old base is replaced.

        Raises `Unavailable` if it must be replaced, and there is no room for another.
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
        """Make a base of these events, and add it to the line."""
        base = make_base(events, tenant=self.tenant, head=head, matcher=self.matcher, now=self.clock())
        self.holdings.bases.add(base)
        line.bases.add(base)
        line.kept = base
        return base

    def newest(self, selections: Collection[Selection], after: int, upto: int) -> dict[str, Event]:
        """Return the newest event of each channel in the ring after a position up to another."""
        found: dict[str, Event] = {}
        if upto <= after or upto < sequence_of(self.ring.floor):
            return found
        for tick in self.ring.after(at(after)):
            for index in indices(tick.share(selections, after=at(after), upto=at(upto))):
                found[tick.channels[index]] = (sequence_of(tick.places[index]), tick.frames[index])
        return found

    def blank(self, deleted: Ranges) -> None:
        """Remove deleted events. The next request gets what preceded them, by another read."""
        for base in self.holdings.bases:
            if base.tenant == self.tenant and base.blank(deleted):
                for line in self.lines.values():
                    line.forget(base)

    def expire(self, before: float) -> None:
        """Release what has not been requested since then."""
        for patterns, line in list(self.lines.items()):
            if line.used < before:
                line.forget()
                if not line.lock.locked():
                    del self.lines[patterns]


def make_base(
    events: Iterable[tuple[str, Event]], *, tenant: str, head: int, matcher: Matcher, now: float
) -> Base:
    """Return the base of events, each with its channel, in any order, without tombstones."""
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
            serial=0,  # its masks are computed when it is sent
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
    """Yield where pages begin and end, given the sizes of all frames."""
    start = size = 0
    for index, each in enumerate(sizes):
        if index > start and (index - start == PAGE_EVENTS or size + each > PAGE_BYTES):
            yield start, index
            start, size = index, 0
        size += each
    if sizes:
        yield start, len(sizes)
