"""Lanes: of each channel at most one event in a time, the newest, for all members that want the same.

A member of a selection gets all that matches. A member of a lane gets the first event of each channel at
once, and then, as long as events arrive, the newest one whenever its *window* ends. Windows end on ticks of a
clock that all lanes share, so that one write carries what is due of many channels.

A lane keeps one event per channel, however many members wait for it, and only while a window is open. Members
whose windows end at the same tick are a group; one that joins later has windows of its own.

No I/O: the tenant asks what is due (`Lanes.due`), and gives it to the members.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from broker.eventlog.places import sequence_of
from broker.eventlog.tick import indices
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.ranges import Ranges
    from broker.wire.events import Own
    from broker.wire.frames import Framing

TICK_MS: Final = 100
TICK_SECONDS: Final = TICK_MS / 1000
ROUNDING = 1e-6  # of a tick
LATE_SECONDS = 0.02  # a window that begins so late after a tick begins at the tick
MOST_BYTES = 32 * 1024 * 1024  # of all lanes of a log; events of further channels are not paced
OVERHEAD = 600  # bytes of a channel besides its event
AT_ONCE = 0  # the tick of what is due already


class Member(Protocol):
    """A connection, as its lanes see it."""

    def will_read(self, place: int, *, unstored: bool) -> bool:
        """Return whether it is behind, and comes to the event at a place by reading the log."""


class Held:
    """An event, as it is sent to the members of lanes."""

    __slots__ = ("channel", "forms", "frame", "own", "place")

    def __init__(self, place: int, channel: str, frame: bytes, own: Own | None = None) -> None:
        self.place = place
        self.channel = channel
        self.frame = frame
        self.own = own
        self.forms: dict[Framing | None, bytes] = {}

    def matches(self, selection: Selection) -> bool:
        """Return whether it is in a selection."""
        wanted = selection.filter
        if not selection.admits(self.channel):
            return False
        return wanted is None or wanted.passes(frames.event_of(self.frame))

    def form(self, framing: Framing | None) -> bytes:
        """Return its frame, with its mark, for a kind of link (None: WebSocket). It is made once."""
        if framing not in self.forms:
            marked = frames.paced(self.frame)
            self.forms[framing] = marked if framing is None else framing(marked, True)
        return self.forms[framing]


Group: TypeAlias = "dict[Member, int]"  # its members, each with the place of the event that it got last
Due: TypeAlias = "dict[Any, list[tuple[Lane, Held]]]"  # by member


class Channel:
    """The newest event of a channel (None: it was deleted), and the groups by the tick at which they are due.

    `complete` is the version of the lane at which every member was in one of the groups, or was behind.
    """

    __slots__ = ("complete", "groups", "held", "place")

    def __init__(self) -> None:
        self.held: Held | None = None
        self.place = -1
        self.groups: dict[int, Group] = {}
        self.complete = -1

    @property
    def size(self) -> int:
        return OVERHEAD + (len(self.held.frame) if self.held else 0)


class Lane:
    """The members that want what matches a selection with the same pace, in ticks.

    `version` grows whenever there may be members that wait for the next event of any channel.
    """

    __slots__ = ("channels", "lanes", "members", "selection", "ticks", "uses", "version")

    def __init__(self, lanes: Lanes, selection: Selection, ticks: int) -> None:
        self.lanes = lanes
        self.selection = selection
        self.ticks = ticks
        self.uses = 0
        self.version = 0
        self.members: dict[Member, None] = {}
        self.channels: dict[str, Channel] = {}

    @property
    def every_ms(self) -> int:
        return self.ticks * TICK_MS

    # --- members ------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        self.members[member] = None
        self.version += 1

    def leave(self, member: Member) -> list[Held]:
        """Remove a member, if it is one. Return the events that it has not got yet."""
        self.members.pop(member, None)
        missed = []
        for channel in self.channels.values():
            for group in channel.groups.values():
                sent = group.pop(member, None)
                if sent is not None and sent < channel.place and channel.held is not None:
                    missed.append(channel.held)
        return missed

    def holds(self, member: Member, name: str, place: int) -> bool:
        """Return whether a member gets the event at a place, or a newer one, when its window ends."""
        channel = self.channels.get(name)
        if channel is None or channel.held is None or channel.place < place or member not in self.members:
            return False
        sent = (group.get(member) for group in channel.groups.values())
        return any(each is not None and each < channel.place for each in sent)

    def read(self, member: Member, name: str, place: int) -> None:
        """Note that a member has got an event by reading the log: its window begins."""
        channel = self.channels.get(name)
        if channel is None:
            if self.lanes.full(self):
                return
            channel = self.open(name)
            channel.place = place
        for group in channel.groups.values():
            group.pop(member, None)
        self.wait(name, channel, {member: place})

    # --- channels -----------------------------------------------------------------------------------

    def open(self, name: str) -> Channel:
        channel = self.channels[name] = Channel()
        self.lanes.size += OVERHEAD
        return channel

    def close(self, name: str, channel: Channel) -> None:
        del self.channels[name]
        self.lanes.size -= channel.size

    def wait(self, name: str, channel: Channel, members: Group, *, at_once: bool = False) -> None:
        """Make members a group that is due when a window that begins now ends, or at once."""
        end = AT_ONCE if at_once else self.lanes.begun() + self.ticks
        channel.groups.setdefault(end, {}).update(members)
        self.lanes.wheel[end][self, name] = None

    def take(self, held: Held) -> None:
        """Take the newest event of a channel; who has no window there is to get it at once."""
        name = held.channel
        channel = self.channels.get(name)
        if channel is None:
            if self.lanes.full(self):
                self.lanes.unpaced.append((self, held))
                return
            channel = self.open(name)
        self.lanes.size -= channel.size
        channel.held, channel.place = held, held.place
        self.lanes.size += channel.size
        if channel.complete != self.version:
            channel.complete = self.version
            waiting = {member for group in channel.groups.values() for member in group}
            unstored = self.selection.unstored
            free = [each for each in self.members if each not in waiting]
            if free := [each for each in free if not each.will_read(held.place, unstored=unstored)]:
                self.wait(name, channel, dict.fromkeys(free, -1), at_once=True)
        if not channel.groups:
            self.close(name, channel)

    def due(self, name: str, end: int, found: Due) -> None:
        """End the windows of a group: add to `found` what its members have not got, and begin new ones.

        For who has got everything the next event is the first one again. Who is behind, and has yet to read
        the event, is given it by its reader.
        """
        channel = self.channels.get(name)
        if channel is None:
            return
        held, unstored, served = channel.held, self.selection.unstored, {}
        group = channel.groups.pop(end, {})
        for member, sent in group.items():
            if held is None or sent >= held.place or member not in self.members:
                continue
            if not member.will_read(held.place, unstored=unstored):
                found[member].append((self, held))
                served[member] = held.place
        if len(served) < len(group):
            channel.complete = -1
        if served:
            self.wait(name, channel, served)
        if not channel.groups:
            self.close(name, channel)


class Lanes:
    """All lanes of a log. `clock` returns the time in seconds.

    A lane has at most `most` channels; events of further ones are not paced.
    """

    def __init__(self, clock: Callable[[], float], most: int = 1000) -> None:
        self.clock = clock
        self.most = most
        self.lanes: dict[Selection, dict[int, Lane]] = {}  # of each selection, by pace
        self.wheel: defaultdict[int, dict[tuple[Lane, str], None]] = defaultdict(dict)  # what is due, by tick
        self.unpaced: list[tuple[Lane, Held]] = []  # due at once, for all members
        self.size = 0

    def acquire(self, selection: Selection, every_ms: int) -> Lane:
        """Return the lane of a selection and a pace, kept until it has been released as often as acquired."""
        ticks = math.ceil(every_ms / TICK_MS)
        paces = self.lanes.setdefault(selection, {})
        lane = paces.get(ticks)
        if lane is None:
            lane = paces[ticks] = Lane(self, selection, ticks)
        lane.uses += 1
        return lane

    def release(self, lane: Lane) -> None:
        lane.uses -= 1
        if not lane.uses:
            paces = self.lanes[lane.selection]
            del paces[lane.ticks]
            if not paces:
                del self.lanes[lane.selection]
            for name, channel in list(lane.channels.items()):
                lane.close(name, channel)

    def full(self, lane: Lane) -> bool:
        """Return whether a lane takes no further channel."""
        return len(lane.channels) >= self.most or self.size >= MOST_BYTES

    def begun(self) -> int:
        """Return the tick at which a window begins that begins now."""
        return math.ceil((self.clock() - LATE_SECONDS) / TICK_SECONDS)

    def take(self, tick: Tick) -> None:
        """Take the events of a tick; `due` has those that are to be sent at once."""
        if not self.lanes:
            return
        for selection in self.lanes.keys() & tick.masks.keys():
            newest = {tick.channels[index]: index for index in indices(tick.masks[selection] & ~tick.gone)}
            for channel, index in newest.items():
                held = Held(tick.places[index], channel, tick.frames[index], tick.own.get(index))
                for lane in self.lanes[selection].values():
                    lane.take(held)

    def next(self) -> float:
        """Return when something is due; infinity if nothing is."""
        if self.unpaced:
            return -math.inf
        return min(self.wheel) * TICK_SECONDS if self.wheel else math.inf

    def due(self) -> Due:
        """Return the events that are to be sent now, by member; from here on they count as sent."""
        found: Due = defaultdict(list)
        unpaced, self.unpaced = self.unpaced, []
        for lane, held in unpaced:
            for member in lane.members:
                if not member.will_read(held.place, unstored=lane.selection.unstored):
                    found[member].append((lane, held))
        now = self.clock() / TICK_SECONDS + ROUNDING
        for end in sorted(each for each in self.wheel if each <= now):
            for lane, name in self.wheel.pop(end):
                lane.due(name, end, found)
        return found

    def drop(self, deleted: Ranges) -> None:
        """Drop deleted events: nothing is sent in their place."""
        stored = [lane for lane in self.all() if not lane.selection.unstored]
        for channel in chain.from_iterable(lane.channels.values() for lane in stored):
            if channel.held is not None and sequence_of(channel.place) in deleted:
                self.size -= len(channel.held.frame)
                channel.held = None

    def all(self) -> Iterable[Lane]:
        return [lane for paces in self.lanes.values() for lane in paces.values()]

    def members(self, selection: Selection) -> list[Any]:
        """Return the members that want a selection at some pace."""
        return [member for lane in self.lanes.get(selection, {}).values() for member in lane.members]

    def held(self) -> int:
        """Return how many events are held."""
        return sum(len(lane.channels) for lane in self.all())
