"""The fan-out of one tenant: each event encoded once, each share of a tick joined once.

Event *i* of a tick is bit *i*. The masks of a tick say which topic matched which events; each member of a
topic ORs them into its own; connections with equal masks get the same bytes. No I/O here: the tenant
actor sends the groups and yields in between.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

import attrs

from broker.metrics.meters import Traffic
from broker.ranges import NOTHING
from broker.ring import Ring, Tick, indices
from broker.routing import Router, Topic
from broker.wire import events, frames, positions, traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from broker import config
    from broker.actors.outlet import Outlet
    from broker.bus.base import Record
    from broker.features.replay import History
    from broker.features.snapshots import Snapshots
    from broker.ranges import Ranges
    from broker.wire.frames import Framing

TICK_EVENTS = 512
TICK_BYTES = 128 * 1024
PUBLISHER = "Broker-User"  # the header that says which client published


class Feed(Protocol):
    """How far the tenant's events have come."""

    def quiet_at(self) -> int | None:
        """The position up to which there is nothing more to fan out; None when something waits."""


@attrs.frozen
class Route:
    """What is known of a channel: the beginning of its frames, and who wants it."""

    prefix: bytes
    topics: tuple[Topic, ...]


class Fanout:
    """The topics, the ring and the outlets of a tenant, in one incarnation of the stream.

    `count` numbers events, live ones included, and `head` is the position after the newest tick. `traced`:
    clients get the trace of an event with it. `history` reads what is below the ring, `snapshots` the
    newest event of each channel.
    """

    history: History
    snapshots: Snapshots

    def __init__(
        self,
        *,
        bounds: config.Ring,
        incarnation: str,
        head: int,
        clock: Callable[[], float],
        feed: Feed,
        count: int = 0,
        traced: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        self.incarnation = incarnation
        self.head = head
        self.count = count
        self.traced = traced
        self.clock = clock
        self.feed = feed
        self.traffic = traffic or Traffic()
        self.ring = Ring(bounds, floor=count, floor_head=head)
        self.router: Router[Route] = Router(self.route)
        self.topics: dict[tuple[str, tuple[str, ...]], Topic] = {}
        self.serial = 0
        self.running: Tick | None = None  # the one that is being sent: from `add` to `finish`
        self.touched: list[Outlet] = []  # who gets something of it, until they have been grouped
        self.outlets: dict[Outlet, None] = {}
        self.framings: Counter[Framing] = Counter()  # of outlets that have one
        self.deleted_late = NOTHING  # events that are to be blanked when the running tick has been sent
        self.framed: dict[Framing, dict[int, bytes]] = {}  # events of the running tick, by their index
        self.strict: set[Outlet] = set()  # behind, with a policy for more than may wait

    def route(self, channel: str, topics: tuple[Topic, ...]) -> Route:
        return Route(frames.event_head(channel, self.incarnation), topics)

    def of(self, channel: str) -> Iterable[Topic]:
        """The topics that a channel matches."""
        return self.router.match(channel).topics

    def position(self) -> int:
        """P of every connection that has been given all; advances while the tenant is quiet."""
        quiet = self.feed.quiet_at()
        if quiet is not None and quiet > self.head and self.running is None:
            self.head = quiet
        return self.head

    def text(self, sequence: int) -> str:
        """A sequence as the position that clients see."""
        return str(positions.Position(self.incarnation, sequence))

    # --- topics ------------------------------------------------------------------------------------

    def acquire(self, pattern: str, deny: tuple[str, ...]) -> Topic:
        """The topic of a pattern, kept until it has been released as often as acquired."""
        topic = self.topics.get((pattern, deny))
        if topic is None:
            self.serial += 1
            topic = self.topics[pattern, deny] = Topic(pattern, deny, self.serial)
            self.router.add(topic)
        topic.uses += 1
        return topic

    def release(self, topic: Topic) -> None:
        """Gives back a topic; also one of a fan-out that is given up, which means nothing here."""
        topic.uses -= 1
        if not topic.uses and self.topics.get((topic.pattern, topic.deny)) is topic:
            del self.topics[topic.pattern, topic.deny]
            self.router.remove(topic)

    # --- ticks -------------------------------------------------------------------------------------

    def encode(self, records: Sequence[tuple[str, Record]], *, first: int, base: int) -> Tick:
        """Records, each with its channel, as a tick that begins at the counter `first`, after `base`."""
        masks: dict[Topic, int] = {}
        encoded: list[bytes] = []
        channels: list[str] = []
        sequences: list[int] = []
        match = self.router.match
        head = base
        bit = 1
        for channel, (sequence, _, body, headers) in records:
            route = match(channel)
            publisher = None
            if headers or not body:
                publisher = published_by(headers)
                body = events.to_event(body, headers)
            encoded.append(frames.event(route.prefix, sequence, body, publisher))
            for topic in route.topics:
                masks[topic] = masks.get(topic, 0) | bit
            bit <<= 1
            head = sequence or head
            sequences.append(head)
            channels.append(channel)
        if self.traced:
            for index, (_, record) in enumerate(records):
                if parent := traces.parent_of(record[3]):
                    encoded[index] = frames.trace(encoded[index], parent)
        return Tick(
            first=first,
            sequences=sequences,
            channels=channels,
            frames=encoded,
            masks=masks,
            base=base,
            head=head,
            serial=self.serial,
            topics=self,
            time=self.clock(),
        )

    def add(self, records: Sequence[tuple[str, Record]], *, upto: int = 0) -> Tick:
        """The next tick, in the ring before it is sent, so that who falls behind finds it there.

        It stands for everything up to the position `upto`, where that is beyond its last event.
        From here to `finish` the mask of an outlet is what it has not been given of it. P moves last: should
        anything break before, nobody is told of what nobody was given.
        """
        tick = self.encode(records, first=self.count + 1, base=self.head)
        tick.head = max(tick.head, upto)
        self.touched = share_out(tick)
        self.ring.add(tick)
        self.count, self.head, self.running = tick.last, tick.head, tick
        return tick

    def groups(self) -> Mapping[Framing | None, Mapping[int, list[Outlet]]]:
        """The outlets that get something of the running tick, by their framing and their share of it."""
        touched, self.touched = self.touched, []
        grouped: dict[int, list[Outlet]] = {}
        if self.framings:
            by_framing: dict[Framing | None, dict[int, list[Outlet]]] = {}
            for outlet in touched:
                by_framing.setdefault(outlet.framing, {}).setdefault(outlet.mask, []).append(outlet)
            return by_framing
        for outlet in touched:
            grouped.setdefault(outlet.mask, []).append(outlet)
        return {None: grouped}

    def shares(self, tick: Tick) -> Iterator[tuple[bytes, int, list[Outlet]]]:
        """Bytes of the running tick, each with the share that they are, for the outlets that get it."""
        for framing, shares in self.groups().items():
            for mask, outlets in shares.items():
                if framing is None:
                    yield tick.join(mask), mask, outlets
                    continue
                try:
                    data = self.join(tick, mask, framing)
                except Exception as error:  # what one kind of link cannot carry, others can
                    for outlet in outlets:
                        outlet.client.crashed(error)
                else:
                    yield data, mask, outlets

    def join(self, tick: Tick, mask: int, framing: Framing | None) -> bytes:
        """A share of the running tick as a kind of link takes it: each event is framed once for all of them.

        What is framed is gone with the tick: the ring holds each event once, and who reads on from there
        pays for its own framing.
        """
        if framing is None:
            return tick.join(mask)
        framed = self.framed.setdefault(framing, {})
        for index in indices(mask):
            if index not in framed:
                framed[index] = framing(tick.frames[index], False)
        return b"".join(framed[index] for index in indices(mask))

    def audience(self, tick: Tick, index: int) -> int:
        """How many connections an event of a tick is for."""
        topics = [topic for topic, mask in tick.masks.items() if mask >> index & 1]
        return len({outlet for topic in topics for outlet in topic.members})

    def finish(self) -> None:
        self.running = None
        if self.deleted_late:
            deleted, self.deleted_late = self.deleted_late, NOTHING
            self.drop(deleted)
        self.framed.clear()

    def drop(self, deleted: Ranges) -> None:
        """Blanks what was deleted.

        The tick that is being sent comes later: who has not got it yet would not hear that something is gone.
        """
        self.ring.blank(deleted, but=self.running)
        if self.running and deleted.meets(self.running.base, self.running.head):
            self.deleted_late |= deleted

    def reached(self, outlet: Outlet) -> int:
        """Up to where a connection has been given everything, also when a tick broke off in the middle."""
        if outlet.backlog:
            return outlet.backlog.position
        if self.running and outlet.mask:
            return self.running.base
        return self.position()

    # --- outlets -----------------------------------------------------------------------------------

    def attach(self, outlet: Outlet) -> None:
        """Takes a connection in, with no subscription yet."""
        self.enter(outlet)
        if outlet.backlog:  # it is still sending what came before its tenant was known
            outlet.backlog.cursor = outlet.backlog.live_cursor = self.count
            outlet.backlog.position = self.position()

    def enter(self, outlet: Outlet) -> None:
        outlet.fanout = self
        self.outlets[outlet] = None
        if outlet.framing is not None:
            self.framings[outlet.framing] += 1

    def detach(self, outlet: Outlet) -> None:
        if outlet.fanout is not self:
            return
        for topics in (outlet.stored, outlet.live, *(catch_up.topics for catch_up in outlet.catch_ups)):
            for topic in topics:
                topic.members.pop(outlet, None)
                self.release(topic)
            topics.clear()
        outlet.mask = 0
        outlet.fanout = None
        self.outlets.pop(outlet, None)
        if outlet.framing is not None:
            self.framings[outlet.framing] -= 1
            if not self.framings[outlet.framing]:
                del self.framings[outlet.framing]
        self.strict.discard(outlet)

    def adopt(self, outlet: Outlet, *, position: int, same_stream: bool) -> None:
        """Takes over a connection from a fan-out that is given up, to go on after `position`.

        Whatever is between `position` and now it reads from the ring or the stream. Positions and floors
        of another incarnation of the stream (`same_stream` False) mean nothing here and are dropped.
        """
        self.enter(outlet)
        outlet.mask = 0
        for topics in (outlet.stored, outlet.live, *(catch_up.topics for catch_up in outlet.catch_ups)):
            for old, floor in list(topics.items()):
                del topics[old]
                new = self.acquire(old.pattern, old.deny)
                topics[new] = self.count if new.live else floor if same_stream else 0
                if outlet in old.members:
                    new.members[outlet] = None
        for catch_up in outlet.catch_ups:
            if not same_stream:
                catch_up.position, catch_up.warned = position, 0
                catch_up.snapshot = catch_up.newer = None
            elif catch_up.snapshot:
                catch_up.snapshot.base.move(self)
        outlet.version += 1
        backlog = outlet.backlog or outlet.fall_behind(memoryview(b""))
        backlog.cursor, backlog.position, backlog.live_cursor = -1, position, self.count
        if not same_stream:
            backlog.warned = 0
        outlet.watch()


def share_out(tick: Tick) -> list[Outlet]:
    """Makes each outlet's share of a tick its mask; those that get something of it."""
    touched: list[Outlet] = []
    for topic, mask in tick.masks.items():
        for outlet in topic.members:
            if outlet.mask:
                outlet.mask |= mask
            else:
                outlet.mask = mask
                touched.append(outlet)
    return touched


def published_by(headers: Mapping[str, str] | None) -> str | None:
    """The client that published an event: the broker writes its user there, encoded."""
    user = headers.get(PUBLISHER) if headers else None
    return None if user is None else events.header_text(user)
