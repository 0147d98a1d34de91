"""The events of one tenant in one incarnation of the stream: written by the tick, read by the page.

Event *i* of a tick is bit *i*. The masks of a tick say which selections match which events; each member of a
selection ORs them into its own mask; members with equal masks get the same bytes. No I/O here: the tenant
actor sends the shares of a tick and yields in between, and a reader that gets `Missing` has the stream read.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from broker.eventlog.lanes import Lanes
from broker.eventlog.places import at, sequence_of
from broker.eventlog.ring import Ring
from broker.eventlog.routing import Router
from broker.eventlog.selection import Selection
from broker.eventlog.tick import Tick, indices
from broker.metrics.meters import RING, Traffic
from broker.ranges import NOTHING
from broker.wire import events, frames, positions, traces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from broker import config
    from broker.bus.base import Record
    from broker.eventlog.history import History
    from broker.eventlog.selection import Key
    from broker.eventlog.snapshots import Snapshots
    from broker.eventlog.tick import Viewer
    from broker.filters import Filter
    from broker.ranges import Ranges
    from broker.wire.frames import Framing

TICK_EVENTS = 512
TICK_FILTERS = 16  # with more, ticks have fewer events: nobody else has a turn while filters are evaluated
TICK_BYTES = 128 * 1024
PAGE_BYTES = 65536  # about what a reader renders at a time
FILTERED_BYTES = 4 * PAGE_BYTES  # … and looks at, where there is a filter: some milliseconds of evaluation


class Feed(Protocol):
    """How far the tenant's events have been fanned out."""

    def quiet_at(self) -> int | None:
        """Return the position up to which nothing is left to fan out; None if something waits."""

    def deleted(self, after: int, upto: int, admits: Callable[[str], bool]) -> bool:
        """Return whether events after a position up to another, in admitted channels, were deleted."""


@attrs.frozen
class Route:
    """The cached data of a channel: the beginning of its frames, and the selections that match, of which
    those that are `filtered` match some of its events.
    """

    prefix: bytes
    selections: tuple[Selection, ...]
    filtered: tuple[Selection, ...]


@attrs.frozen(kw_only=True)
class Page:
    """What comes next for a reader: shares of ticks in order, up to the place `end`.

    `lost`: none of it is available any more. `source` is where it was read.
    """

    end: int
    shares: Sequence[tuple[Tick, int]] = ()
    lost: bool = False
    source: str = RING


@attrs.frozen
class Missing:
    """The stream has to be read for what follows a position; then the log has it, for all readers."""

    selections: tuple[Selection, ...]
    after: int


class EventLog:
    """The selections and the ring of a tenant's events.

    `head` is the place after the newest tick. `traced`: clients get the trace context of an event. `lanes`
    have the members that want events at a pace. `history` reads what is below the ring, `snapshots` the
    newest event of each channel.
    """

    history: History
    snapshots: Snapshots

    def __init__(
        self,
        *,
        bounds: config.Ring,
        incarnation: str,
        position: int,
        clock: Callable[[], float],
        feed: Feed,
        traced: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        self.incarnation = incarnation
        self.head = at(position)
        self.traced = traced
        self.clock = clock
        self.feed = feed
        self.traffic = traffic or Traffic()
        self.ring = Ring(bounds, floor=self.head)
        self.router: Router[Route] = Router(self.route)
        self.selections: dict[Key, Selection] = {}
        self.lanes = Lanes(clock)
        self.filters: Counter[Filter] = Counter()  # of these
        self.serial = 0
        self.running: Tick | None = None  # from `append` to `finish`
        self.groups: dict[int, list[Any]] = {}  # the members with the same share of it, by their mask
        self.framings: Counter[Framing] = Counter()  # of members that have one
        self.framed: dict[Framing, dict[int, bytes]] = {}  # framed events of the running tick, by index
        self.deleted_late = NOTHING  # events to be blanked once the running tick has been sent

    @property
    def tick_events(self) -> int:
        """Return the number of events that a tick may have."""
        return max(1, TICK_EVENTS * TICK_FILTERS // max(TICK_FILTERS, len(self.filters)))

    def route(self, channel: str, selections: tuple[Selection, ...]) -> Route:
        plain = tuple(each for each in selections if each.filter is None)
        filtered = tuple(each for each in selections if each.filter is not None)
        return Route(frames.event_head(channel, self.incarnation), plain, filtered)

    def of(self, channel: str) -> Iterable[Selection]:
        """Return the selections without a filter that match a channel."""
        return self.router.match(channel).selections

    def end(self) -> int:
        """Return the place of everybody who is up to date; it also advances while the tenant is quiet."""
        quiet = self.feed.quiet_at()
        if quiet is not None and self.running is None and at(quiet) > self.head:
            self.head = at(quiet)
        return self.head

    def position(self) -> int:
        """Return P of every connection that is up to date."""
        return sequence_of(self.end())

    def text(self, sequence: int) -> str:
        """Return a sequence as the position that clients see."""
        return str(positions.Position(self.incarnation, sequence))

    # --- selections --------------------------------------------------------------------------------

    def acquire(self, pattern: str, deny: tuple[str, ...], filter_: Filter | None = None) -> Selection:
        """Return the selection of a pattern, kept until it has been released as often as acquired."""
        selection = self.selections.get((pattern, deny, filter_))
        if selection is None:
            self.serial += 1
            selection = self.selections[pattern, deny, filter_] = Selection(
                pattern, deny, self.serial, filter_
            )
            self.router.add(selection)
            if filter_ is not None:
                self.filters[filter_] += 1
        selection.uses += 1
        return selection

    def release(self, selection: Selection) -> None:
        """Give back a selection; one of a former log is simply dropped."""
        selection.uses -= 1
        if not selection.uses and self.selections.get(selection.key) is selection:
            del self.selections[selection.key]
            self.router.remove(selection)
            if selection.filter is not None:
                self.filters -= Counter((selection.filter,))
                self.ring.forget(selection)

    # --- writing -----------------------------------------------------------------------------------

    def encode(self, records: Sequence[tuple[str, Record]], *, base: int, arriving: bool = False) -> Tick:
        """Return records, each with its channel, as a tick after the place `base`.

        Filters are evaluated at once for events that are `arriving`, and only when somebody asks for others.
        """
        masks: dict[Selection, int] = {}
        encoded: list[bytes] = []
        channels: list[str] = []
        places: list[int] = []
        match = self.router.match
        own: dict[int, events.Own] = {}
        place = base
        bit = 1
        for channel, (sequence, _, body, headers) in records:
            route = match(channel)
            publisher = None
            if headers or not body:
                publisher = events.published_by(headers)
                if headers and publisher is not None and (differs := events.own(publisher, headers)):
                    own[len(encoded)] = differs
                body = events.to_event(body, headers)
            encoded.append(frames.event(route.prefix, sequence, body, publisher))
            for selection in route.selections:
                masks[selection] = masks.get(selection, 0) | bit
            if arriving and route.filtered:
                event = events.everything.decode(body)
                for selection in route.filtered:
                    if selection.filter is not None and selection.filter.passes(event):
                        masks[selection] = masks.get(selection, 0) | bit
            bit <<= 1
            place = at(sequence) if sequence else place + 1
            places.append(place)
            channels.append(channel)
        if self.traced:
            for index, (_, record) in enumerate(records):
                if parent := traces.parent_of(record[3]):
                    encoded[index] = frames.trace(encoded[index], parent)
        return Tick(
            base=base,
            head=place,
            places=places,
            channels=channels,
            frames=encoded,
            masks=masks,
            matcher=self,
            serial=self.serial,
            filtered=self.serial if arriving else 0,
            time=self.clock(),
            own=own,
        )

    def append(self, records: Sequence[tuple[str, Record]], *, upto: int = 0) -> Tick:
        """Take the next events, and give the members their shares. `finish` ends the tick.

        The events stand for everything up to the position `upto`, if that is beyond the last of them. They
        are in the ring before they are sent, so that a member that falls behind finds them there. The head
        advances last: if anything fails before, nobody is told a position that was not delivered.
        """
        tick = self.encode(records, base=self.head, arriving=True)
        tick.head = max(tick.head, at(upto))
        groups = shared_out(tick.masks)
        self.ring.add(tick)
        self.lanes.take(tick)
        self.groups, self.head, self.running = groups, tick.head, tick
        return tick

    def shares(self, tick: Tick) -> Iterator[tuple[bytes, int, list[Any]]]:
        """Yield each share of the running tick: its bytes, its mask, and the members that get it."""
        groups, self.groups = self.groups, {}
        publishers = {own.user for own in tick.own.values()}
        for mask, members in groups.items():
            kinds: dict[tuple[Framing | None, Any], list[Any]] = {(None, None): members}
            if self.framings or publishers:
                kinds = {}
                for member in members:
                    viewer = member if member.user in publishers else None
                    kinds.setdefault((member.framing, viewer), []).append(member)
            for (framing, viewer), alike in kinds.items():
                if framing is None and viewer is None:
                    yield tick.join(mask), mask, alike
                    continue
                try:
                    data = b"".join(self.framed_share(tick, mask, framing, viewer))
                except Exception as error:  # other kinds of link may still carry it
                    for member in alike:
                        member.client.crashed(error)
                else:
                    if data:
                        yield data, mask, alike
                    else:  # all of it is not for the connection that published it
                        viewer.mask = 0

    def framed_share(
        self, tick: Tick, mask: int, framing: Framing | None, viewer: Viewer | None
    ) -> list[bytes]:
        """Return the frames of a share of the running tick for a kind of link.

        Each event is framed once for all links of the kind. Framed events are dropped with the tick: the ring
        holds each event once, and a reader that reads on from there does its own framing. For a `viewer` who
        may have published one of them it is done apart.
        """
        if viewer is not None and tick.own:
            return frames.converted(tick.view(mask, viewer), framing)
        if framing is None:
            return list(tick.select(mask))
        framed = self.framed.setdefault(framing, {})
        for index in indices(mask):
            if index not in framed:
                framed[index] = framing(tick.frames[index], False)
        return [framed[index] for index in indices(mask)]

    def audience(self, tick: Tick, index: int) -> int:
        """Return the number of connections that an event of a tick is for."""
        matched = [selection for selection, mask in tick.masks.items() if mask >> index & 1]
        return len({member for each in matched for member in (*each.members, *self.lanes.members(each))})

    def finish(self) -> None:
        """End the running tick: all members have been sent their shares, or read them from the ring."""
        self.running = None
        self.groups = {}
        self.framed.clear()
        if self.deleted_late:
            deleted, self.deleted_late = self.deleted_late, NOTHING
            self.drop(deleted)

    def drop(self, deleted: Ranges) -> None:
        """Blank deleted events.

        Those in the running tick are blanked later: members that have not got it yet would not hear of the
        gap.
        """
        running = self.running
        self.ring.blank(deleted, but=running)
        self.lanes.drop(deleted)
        if running and deleted.meets(sequence_of(running.base), sequence_of(running.head)):
            self.deleted_late |= deleted

    # --- reading -----------------------------------------------------------------------------------

    def read(
        self,
        selections: tuple[Selection, ...],
        after: int,
        upto: int,
        *,
        floors: Mapping[Selection, int] | None = None,
        budget: int | None = PAGE_BYTES,
    ) -> Page | Missing:
        """Return what comes after one place up to another, about `budget` bytes of it (None: all at hand).

        Below the ring only stored events: unstored ones are kept nowhere else. What filters leave out counts
        as work.
        """
        filtered = any(each.filter is not None for each in selections)
        ticks: Sequence[Tick]
        source, floor = RING, self.ring.floor
        if not selections or sequence_of(after) >= sequence_of(floor):
            ticks = self.ring.after(after)
        else:
            segment = self.history.find(selections, sequence_of(after))
            if segment is None:
                return Missing(selections, sequence_of(after))
            source = segment.source
            if segment.trimmed > sequence_of(after):
                return Page(end=min(at(segment.trimmed), upto), lost=True, source=source)
            # All stored events before the ring are at or below its floor's position.
            end = floor if segment.upto >= sequence_of(floor) else at(segment.upto)
            ticks, upto = (segment.tick,), min(upto, end)
        shares: list[tuple[Tick, int]] = []
        size = looked_at = 0
        for tick in ticks:
            if tick.base >= upto:
                break
            looked_at += tick.size if filtered else 0
            if mask := tick.share(selections, floors, after=after, upto=upto):
                share = tick.size * mask.bit_count() // len(tick.frames)
                if budget is not None and size + share > 2 * budget:  # as a page of the stream may be
                    mask, end = tick.cut(mask, budget - size)
                    return Page(end=end, shares=[*shares, (tick, mask)], source=source)
                shares.append((tick, mask))
                size += share
            full = (budget is not None and size >= budget) or looked_at >= FILTERED_BYTES
            if full and tick.head < upto:
                return Page(end=tick.head, shares=shares, source=source)
        return Page(end=upto, shares=shares, source=source)

    def count(
        self, selections: Collection[Selection], floors: Mapping[Selection, int] | None, after: int
    ) -> int | None:
        """Return how many events after a place match; None if the place is below the ring."""
        if sequence_of(after) < sequence_of(self.ring.floor):
            return None
        ticks = self.ring.after(after)
        return sum(tick.share(selections, floors, after=after).bit_count() for tick in ticks)

    def events_after(self, place: int) -> int | None:
        """Return how many events of the tenant follow a place; None if it is below the ring."""
        if sequence_of(place) < sequence_of(self.ring.floor):
            return None
        return sum(len(tick.frames) - tick.before(place) for tick in self.ring.after(place))


def shared_out(masks: Mapping[Selection, int]) -> dict[int, list[Any]]:
    """Give members their shares of a tick. Return those with the same share, by its mask."""
    groups: dict[int, list[Any]] = {}
    if len(masks) == 1:  # as for most ticks of a single event
        for selection, mask in masks.items():
            if selection.members:
                groups[mask] = list(selection.members)
            for member in selection.members:
                member.mask = mask
        return groups
    touched: list[Any] = []
    for selection, mask in masks.items():
        for member in selection.members:
            if member.mask:
                member.mask |= mask
            else:
                member.mask = mask
                touched.append(member)
    for member in touched:
        groups.setdefault(member.mask, []).append(member)
    return groups
