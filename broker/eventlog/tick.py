"""Ticks: events that were encoded together, with the selections that match each.

A tick has up to some hundred events in stream order and, for each selection that matches one of them, an
`int` whose bit *i* says that event *i* matches. A page of history read from the stream has the same shape, so
that one reader serves both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, chain, compress, count, islice
from typing import TYPE_CHECKING, Protocol

from broker import subjects
from broker.eventlog.places import SHIFT, at, sequence_of
from broker.wire import frames as framing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from broker.eventlog.selection import Selection
    from broker.filters import Filter
    from broker.ranges import Ranges
    from broker.wire.events import Own

BITS = bytes.maketrans(b"01", b"\0\1")
UNSTORED = (1 << SHIFT) - 1  # the bits of a place that only an unstored event has
NONE: dict[int, Own] = {}  # of all ticks without an event of a client
OVERHEAD = 100  # bytes of an event besides its frame: list slots, small ints, its share of the tick


def bits(mask: int) -> bytes:
    """Return the mask as one byte per event, lowest first, as `itertools.compress` needs it."""
    return bin(mask)[:1:-1].encode().translate(BITS)


def indices(mask: int) -> Iterable[int]:
    """Yield the indices of the mask's bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Matcher(Protocol):
    """All current selections; `serial` is that of the newest."""

    serial: int

    def of(self, channel: str) -> Iterable[Selection]:
        """Return the selections without a filter that match a channel."""


class Viewer(Protocol):
    """Whose frames they are: a connection, and the user for whom its own events have an id (None: nobody)."""

    @property
    def user(self) -> str | None: ...

    def connection(self) -> str: ...


class Tick:
    """Events that were encoded together.

    `places` has the place of each event, ascending; `base` is the place before all of them and `head` the
    place after. `masks` is complete for the selections of `matcher` up to `serial`, and for those with a
    filter up to `filtered`. `gone` are the events that are no longer sent to anybody. `own` has, by index,
    what differs in an event for its publisher.
    """

    __slots__ = (
        "base", "channels", "filtered", "frames", "gone", "head", "index", "masks", "matcher", "own",
        "places", "rooms", "serial", "size", "time",
    )  # fmt: skip

    def __init__(
        self,
        *,
        base: int,
        head: int,
        places: list[int],
        channels: list[str],
        frames: list[bytes],
        masks: dict[Selection, int],
        matcher: Matcher,
        serial: int,
        time: float,
        filtered: int = 0,
        own: dict[int, Own] | None = None,
    ) -> None:
        self.own = own or NONE
        self.base = base
        self.head = head
        self.places = places
        self.channels = channels
        self.frames = frames
        self.masks = masks
        self.matcher = matcher
        self.serial = serial
        self.filtered = filtered
        self.time = time
        self.size = sum(map(len, frames)) + OVERHEAD * len(frames)
        self.index: dict[str, int] = {}  # the events of each channel, built on demand
        self.rooms: set[str | None] = set()
        self.gone = 0

    def mask(self, selection: Selection) -> int:
        """Return the events that match; computed now if the selection is newer than the tick."""
        found = self.masks.get(selection)
        if found is not None:
            return found
        if selection.filter is not None:
            return 0 if selection.serial <= self.filtered else self.evaluate(selection, selection.filter)
        if selection.serial <= self.serial:
            return 0
        by_channel = self.by_channel()
        if selection.literal:
            found = by_channel.get(selection.pattern, 0)
            return found if found and selection.admits(selection.pattern) else 0
        if selection.room is not None and selection.room not in self.rooms:
            return 0  # as for most private patterns, which are many
        self.route()
        return self.masks.get(selection, 0)

    def by_channel(self) -> Mapping[str, int]:
        """Return the events of each channel."""
        if not self.index:
            for index, channel in enumerate(self.channels):
                self.index[channel] = self.index.get(channel, 0) | 1 << index
            self.rooms.update(map(subjects.room, self.index))
        return self.index

    def evaluate(self, selection: Selection, wanted: Filter) -> int:
        """Compute and keep the mask of a selection that has a filter."""
        by_channel = self.by_channel()
        channels = (selection.pattern,) if selection.literal else by_channel
        candidates = sum(by_channel.get(each, 0) for each in channels if selection.admits(each))
        found = 0
        for index in indices(candidates & ~self.gone):
            if wanted.passes(framing.event_of(self.frames[index])):
                found |= 1 << index
        self.masks[selection] = found
        return found

    def route(self) -> None:
        """Compute the masks of all newer selections in one pass, however many there are."""
        for channel, events in self.index.items():
            for selection in self.matcher.of(channel):
                if selection.serial > self.serial:
                    self.masks[selection] = self.masks.get(selection, 0) | events
        self.serial = self.matcher.serial

    def move(self, matcher: Matcher) -> None:
        """Match against the selections of another log from now on, of which no masks are known yet."""
        self.matcher, self.serial, self.filtered = matcher, 0, 0
        self.masks.clear()

    def share(
        self,
        selections: Collection[Selection],
        floors: Mapping[Selection, int] | None = None,
        *,
        after: int = 0,
        upto: int | None = None,
    ) -> int:
        """Return the events that match any of the selections, after a place up to another.

        `floors` are places of some selections, up to which they get nothing.
        """
        mask = 0
        for selection in selections:
            if found := self.mask(selection):
                if floors and (floor := floors.get(selection, 0)) > self.base:
                    found &= -1 << self.before(floor)
                mask |= found
        if mask and after > self.base:
            mask &= -1 << self.before(after)
        if mask and upto is not None and upto < self.head:
            mask &= (1 << self.before(upto)) - 1
        return mask & ~self.gone

    def cut(self, mask: int, size: int) -> tuple[int, int]:
        """Return the first events of a share, up to about `size` bytes, and the place of the last one."""
        chosen = bits(mask)
        ends = list(accumulate(map(len, compress(self.frames, chosen))))
        last = min(bisect_left(ends, size), len(ends) - 1)
        index = next(islice(compress(count(), chosen), last, None))
        return mask & (2 << index) - 1, self.places[index]

    def before(self, place: int) -> int:
        """Return how many of its events are at or before a place."""
        return bisect_right(self.places, place)

    def blank(self, deleted: Ranges) -> int:
        """Remove the stored events that have been deleted. Return the number of bytes freed."""
        freed = 0
        if not self.places:
            return 0
        for first, last in deleted.within(sequence_of(self.base) + 1, sequence_of(self.places[-1])):
            for index in range(bisect_left(self.places, at(first)), self.before(at(last))):
                if not self.places[index] & UNSTORED:
                    freed += len(self.frames[index])
                    self.frames[index] = b""
                    self.gone |= 1 << index
        self.size -= freed
        return freed

    def join(self, mask: int) -> bytes:
        """Return the frames of a non-empty share as one."""
        if mask & (mask - 1) == 0:
            return self.frames[mask.bit_length() - 1]
        return b"".join(compress(self.frames, bits(mask)))

    def select(self, mask: int) -> Iterable[bytes]:
        """Return the frames of a share."""
        return compress(self.frames, bits(mask))

    def view(self, mask: int, viewer: Viewer | None) -> list[bytes]:
        """Return the frames of a share as a viewer gets them: an empty one for an event that it does not."""
        frames = list(self.select(mask))
        if self.own and viewer is not None:
            for number, index in enumerate(indices(mask)):
                own = self.own.get(index)
                if own is None or own.user != viewer.user:
                    continue
                if own.unechoed is not None and own.unechoed == viewer.connection():
                    frames[number] = b""
                elif own.id is not None:
                    frames[number] = framing.own(frames[number], own.user, own.id)
        return frames


def merged(ticks: Sequence[Tick]) -> Tick:
    """Return consecutive ticks as one. It has the masks of the selections that all of them know."""
    serial = min(tick.serial for tick in ticks)
    filtered = min(tick.filtered for tick in ticks)
    masks: dict[Selection, int] = {}
    own: dict[int, Own] = {}
    shift = gone = 0
    for tick in ticks:
        own |= {shift + index: each for index, each in tick.own.items()}
        gone |= tick.gone << shift
        for selection, mask in tick.masks.items():
            if selection.serial <= (serial if selection.filter is None else filtered):
                masks[selection] = masks.get(selection, 0) | mask << shift
        shift += len(tick.frames)
    whole = Tick(
        base=ticks[0].base,
        head=ticks[-1].head,
        places=list(chain.from_iterable(tick.places for tick in ticks)),
        channels=list(chain.from_iterable(tick.channels for tick in ticks)),
        frames=list(chain.from_iterable(tick.frames for tick in ticks)),
        masks=masks,
        matcher=ticks[0].matcher,
        serial=serial,
        filtered=filtered,
        time=ticks[-1].time,
        own=own,
    )
    whole.gone = gone
    return whole


def woven(ticks: Sequence[Tick], *, after: int, upto: int) -> Tick:
    """Return the events of overlapping ticks after a place up to another as one tick, each once, in order.

    It has no masks yet.
    """
    events: dict[int, tuple[str, bytes, Own | None]] = {}
    gone = set()
    for tick in ticks:
        for index, place in enumerate(tick.places):
            if after < place <= upto:
                events[place] = tick.channels[index], tick.frames[index], tick.own.get(index)
                if tick.gone >> index & 1:
                    gone.add(place)
    places = sorted(events.keys() - gone)
    return Tick(
        base=after,
        head=upto,
        places=places,
        channels=[events[place][0] for place in places],
        frames=[events[place][1] for place in places],
        masks={},
        matcher=ticks[0].matcher,
        serial=0,
        time=ticks[0].time,
        own={index: own for index, place in enumerate(places) if (own := events[place][2])},
    )
