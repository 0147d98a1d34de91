"""The recent events of a tenant, encoded, as the ticks in which they were sent.

A tick holds up to some hundred events in stream order with, for each topic that one of them matched, an
`int` whose bit *i* says that event *i* did. A page of history read from the stream has the same shape,
so that one reader serves both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from broker import subjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from broker.config import Ring as Bounds
    from broker.ranges import Ranges

BITS = bytes.maketrans(b"01", b"\0\1")
SMALL, SMALL_BYTES = 16, 4096  # events and bytes of a tick that is merged with others, at most
LOOSE = 32  # so many of them at a time
OVERHEAD = 100  # bytes that an event costs beside its frame: list slots, small ints, its share of the tick


def bits(mask: int) -> bytes:
    """The mask as one byte an event, lowest first: what `itertools.compress` takes."""
    return bin(mask)[:1:-1].encode().translate(BITS)


def indices(mask: int) -> Iterable[int]:
    """The indices of the mask's bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Topic(Protocol):
    """What a tick needs to know of a topic."""

    pattern: str
    literal: bool
    room: str | None
    serial: int
    live: bool

    def admits(self, channel: str) -> bool: ...


class Topics(Protocol):
    """All topics that there are now; `serial` is that of the newest."""

    serial: int

    def of(self, channel: str) -> Iterable[Topic]:
        """Those that a channel matches."""


T = TypeVar("T", bound=Topic)


class Tick:
    """Events that were encoded together.

    `first` is the tenant's counter at its first event; live events count too. `sequences` has for each
    the position after it: its own sequence, or, for a live one, that of the stored one before it.
    `base` is the position before all of it and `head` the one after, `serial` that of the newest of the
    `topics` that its masks know. `gone` are the events that nobody is given any more.
    """

    __slots__ = (
        "base", "channels", "first", "frames", "gone", "head", "index", "masks", "rooms",
        "sequences", "serial", "size", "time", "topics",
    )  # fmt: skip

    def __init__(
        self,
        *,
        first: int,
        sequences: list[int],
        channels: list[str],
        frames: list[bytes],
        masks: dict[Any, int],
        base: int,
        head: int,
        serial: int,
        topics: Topics,
        time: float,
    ) -> None:
        self.first = first
        self.sequences = sequences
        self.channels = channels
        self.frames = frames
        self.masks = masks
        self.base = base
        self.head = head
        self.serial = serial
        self.time = time
        self.size = sum(map(len, frames)) + OVERHEAD * len(frames)
        self.topics = topics
        self.index: dict[str, int] = {}  # the events of each channel, once somebody has asked
        self.rooms: set[str | None] = set()
        self.gone = 0

    @property
    def last(self) -> int:
        """The counter at its last event."""
        return self.first + len(self.frames) - 1

    def mask(self, topic: Topic) -> int:
        """The events that match the topic; worked out now when the topic is younger than the tick."""
        found = self.masks.get(topic)
        if found is not None:
            return found
        if topic.serial <= self.serial:
            return 0
        if not self.index:
            for index, channel in enumerate(self.channels):
                self.index[channel] = self.index.get(channel, 0) | 1 << index
            self.rooms.update(map(subjects.room, self.index))
        if topic.literal:
            found = self.index.get(topic.pattern, 0)
            return found if found and topic.admits(topic.pattern) else 0
        if topic.room is not None and topic.room not in self.rooms:
            return 0  # as for most of the private topics, which are many
        self.route()
        return self.masks.get(topic, 0)

    def route(self) -> None:
        """Works out the masks of all younger topics in one go, whatever their number."""
        for channel, events in self.index.items():
            for topic in self.topics.of(channel):
                if topic.serial > self.serial:
                    self.masks[topic] = self.masks.get(topic, 0) | events
        self.serial = self.topics.serial

    def move(self, topics: Topics) -> None:
        """From now on it is matched against other topics, none of which it knows yet."""
        self.topics, self.serial = topics, 0
        self.masks.clear()

    def share(self, topics: Mapping[T, int], *, after: int = 0) -> int:
        """The events for a reader of `topics` (each with its floor) from the index `after` on."""
        mask = 0
        for topic, floor in topics.items():
            if found := self.mask(topic):
                mask |= self.above(found, floor, live=topic.live)
        return mask & (-1 << after) & ~self.gone

    def above(self, mask: int, floor: int, *, live: bool) -> int:
        if live:
            return mask & (-1 << max(0, floor - self.first + 1))
        if floor < self.sequences[0]:
            return mask
        if floor >= self.head:
            return 0
        return mask & (-1 << self.before(floor))

    def before(self, position: int) -> int:
        """How many of its events are at or before a position."""
        return bisect_right(self.sequences, position)

    def blank(self, deleted: Ranges) -> int:
        """Takes the stored events out that are among the deleted; how many bytes that sets free."""
        freed = 0
        for first, last in deleted.within(self.base + 1, self.sequences[-1]):
            for index in range(bisect_left(self.sequences, first), self.before(last)):
                if not subjects.is_live(self.channels[index]):
                    freed += len(self.frames[index])
                    self.frames[index] = b""
                    self.gone |= 1 << index
        self.size -= freed
        return freed

    def join(self, mask: int) -> bytes:
        """The frames of a share, which is not empty, as one."""
        if mask & (mask - 1) == 0:
            return self.frames[mask.bit_length() - 1]
        return b"".join(compress(self.frames, bits(mask)))


def merged(ticks: Sequence[Tick]) -> Tick:
    """Ticks that follow each other, as one. What it knows of topics is what the oldest one knew."""
    serial = min(tick.serial for tick in ticks)
    masks: dict[Any, int] = {}
    shift = gone = 0
    for tick in ticks:
        gone |= tick.gone << shift
        for topic, mask in tick.masks.items():
            if topic.serial <= serial:
                masks[topic] = masks.get(topic, 0) | mask << shift
        shift += len(tick.frames)
    whole = Tick(
        first=ticks[0].first,
        sequences=list(chain.from_iterable(tick.sequences for tick in ticks)),
        channels=list(chain.from_iterable(tick.channels for tick in ticks)),
        frames=list(chain.from_iterable(tick.frames for tick in ticks)),
        masks=masks,
        base=ticks[0].base,
        head=ticks[-1].head,
        serial=serial,
        topics=ticks[0].topics,
        time=ticks[-1].time,
    )
    whole.gone = gone
    return whole


@attrs.frozen(kw_only=True)
class RingStatistics:
    ticks: int
    events: int
    size: int


class Ring:
    """Ticks in order, bounded by count, bytes and age; the newest may be read while it is being sent.

    Everything after the counter `floor` and the position `floor_head` is here. Small ticks, which a quiet
    tenant's are, are merged: a reader pays by the tick, and a tick of one event takes twice the memory.
    """

    def __init__(self, bounds: Bounds, *, floor: int, floor_head: int) -> None:
        self.bounds = bounds
        self.floor = floor
        self.floor_head = floor_head
        self.ticks: list[Tick] = []
        self.lasts: list[int] = []
        self.heads: list[int] = []
        self.start = 0  # ticks before this index are gone; removed from the lists now and then
        self.events = 0
        self.size = 0
        self.loose = 0  # so many of the newest ticks are small, and not merged yet
        self.merges = bounds.events >= LOOSE * SMALL * 8  # a ring is trimmed by the tick: not by much of it

    def add(self, tick: Tick) -> None:
        if self.loose == LOOSE and self.merges:
            self.merge()
        small = len(tick.frames) <= SMALL and tick.size <= SMALL_BYTES
        self.loose = self.loose + 1 if small else 0
        self.ticks.append(tick)
        self.lasts.append(tick.last)
        self.heads.append(tick.head)
        self.events += len(tick.frames)
        self.size += tick.size
        while self.events > self.bounds.events or self.size > self.bounds.bytes:
            if self.start == len(self.ticks) - 1:
                break  # the tick that is being sent stays, however large
            self.drop()
        self.expire(tick.time)

    def merge(self) -> None:
        """Makes one tick of the loose ones, none of which is being sent any more."""
        start = max(self.start, len(self.ticks) - self.loose)
        self.loose = 0
        if start < len(self.ticks):
            tick = merged(self.ticks[start:])
            self.ticks[start:], self.lasts[start:], self.heads[start:] = [tick], [tick.last], [tick.head]

    def expire(self, now: float) -> None:
        """Drops what is older than the bound; `now` is on the clock of the ticks."""
        while self.start < len(self.ticks) and self.ticks[self.start].time < now - self.bounds.seconds:
            self.drop()

    def drop(self) -> None:
        """Drops the oldest tick."""
        tick = self.ticks[self.start]
        self.floor, self.floor_head = tick.last, tick.head
        self.events -= len(tick.frames)
        self.size -= tick.size
        self.start += 1
        if self.start > 64 and self.start * 2 > len(self.ticks):
            del self.ticks[: self.start], self.lasts[: self.start], self.heads[: self.start]
            self.start = 0

    @property
    def oldest(self) -> int | None:
        """The position before its oldest tick; None without any."""
        return self.ticks[self.start].base if self.start < len(self.ticks) else None

    def blank(self, deleted: Ranges, *, but: Tick | None) -> None:
        """Takes deleted events out of all ticks but the one that is being sent."""
        for tick in self.ticks[self.start :]:
            if tick is not but:
                self.size -= tick.blank(deleted)

    def after(self, cursor: int) -> Sequence[Tick]:
        """The ticks that hold something after the counter `cursor`, which is not below `floor`."""
        return self.ticks[bisect_right(self.lasts, cursor, self.start) :]

    def cursor(self, position: int) -> int:
        """The counter at a position, which is not below `floor_head`."""
        index = bisect_left(self.heads, position, self.start)
        if index == len(self.ticks):
            return self.lasts[-1] if self.start < len(self.lasts) else self.floor
        tick = self.ticks[index]
        return tick.first + tick.before(position) - 1

    def statistics(self) -> RingStatistics:
        return RingStatistics(ticks=len(self.ticks) - self.start, events=self.events, size=self.size)
