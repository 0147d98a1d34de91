"""A connection's outbound end: what of its tenant's events it has been given, and what it still gets.

Pure of I/O but for one call, the link's `send`, which takes what the kernel takes at once. An outlet is
either up to date (`backlog` is None: the tenant writes to it directly) or *behind*: then it holds the rest of
one frame and where it stands, and reads on from the ring or the stream at the client's pace. A resume is a
connection that begins behind. A catch-up is a reader of its own beside the live flow.

The rule that everything here keeps: a frame that carries the live position is never sent before
the events up to that position.
"""

from __future__ import annotations

from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypedDict

from msgspec import UNSET

from broker.actors.chunks import Chunk, Reading, from_ring
from broker.actors.transport import LinkLost
from broker.metrics.meters import RING, STREAM
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker.actors.fanout import Fanout
    from broker.actors.tenant import Notice
    from broker.features.snapshots import Snapshot
    from broker.ring import Ring, Tick
    from broker.routing import Topic
    from broker.wire.frames import Framing
    from broker.wire.messages import Lag, ServerMessage


NO_LAGS: Mapping[str, Lag] = MappingProxyType({})


class Who(TypedDict):
    """Whom a line of the log or a record is about."""

    connection: str
    peer: str
    tenant: str | None
    user: str | None


class Client(Protocol):
    """What an outlet tells its connection. Called in the middle of things: nothing may block or raise.

    `lost`: nothing can be sent any more.
    """

    @property
    def lost(self) -> bool: ...

    def who(self) -> Who:
        """Who it is, for operators."""

    def fell_behind(self) -> None:
        """There is something to be sent when the link takes it again."""

    def link_lost(self) -> None:
        """The link is gone."""

    def crashed(self, error: Exception) -> None:
        """Something is wrong with it that nobody expects: the end of it alone."""

    def too_slow(self) -> None:
        """More waits than a subscription with lag "close" allows."""

    def send_away(self) -> None:
        """Its tenant cannot be served; it may come back later."""

    def tell(self, message: ServerMessage) -> None:
        """Sends the client a message in its turn."""

    def heed_notice(self, notice: Notice) -> None:
        """Sends the client what all are told."""


class Nobody:
    """Whom the outlet of a connection that has ended tells, should its last piece of work be under way."""

    lost = True

    def who(self) -> Who:
        return {"connection": "", "peer": "", "tenant": None, "user": None}

    def nothing(self, *_: object) -> None: ...

    fell_behind = link_lost = crashed = too_slow = send_away = tell = heed_notice = nothing


NOBODY = Nobody()


class Group:
    """Subscriptions that were asked for together, and are announced as live together.

    `number` is that of their catch-up; None for a resume.
    """

    __slots__ = ("listed", "number", "patterns")

    def __init__(self, patterns: Iterable[str], *, listed: bool, number: int | None = None) -> None:
        self.patterns = dict.fromkeys(patterns)
        self.listed = listed
        self.number = number

    def channel(self) -> str | list[str]:
        return list(self.patterns) if self.listed else next(iter(self.patterns))


class CatchUp:
    """A start in the past beside the live flow: its own position, which follows P and ends at it.

    A snapshot comes first, where there is one, up to its `head`, and then what is `newer`. `told`
    is the newest P that the client is known to have been told. Up to `warned` it knows that something was
    deleted. It `began` then, by the loop's clock, and `source` is where it was read so far.
    """

    __slots__ = (
        "began", "groups", "newer", "number", "position", "snapshot", "source", "told", "topics", "warned",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        *,
        position: int,
        told: int,
        began: float,
        warned: int = 0,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.number = number
        self.told = told
        self.warned = warned
        self.began = began
        self.source = RING if snapshot is None else STREAM
        self.position = position
        self.snapshot = snapshot
        self.newer = snapshot and snapshot.newer
        self.topics: dict[Topic, int] = {}
        self.groups: list[Group] = []

    def move(self, position: int) -> None:
        """Has everything up to a position. What of a snapshot lies behind it is let go."""
        self.position = position
        if self.snapshot and position >= self.snapshot.head:
            self.snapshot = None
        if self.newer and position >= self.newer.head:
            self.newer = None

    def choose(self, chunk: Chunk) -> Chunk:
        """A chunk of what follows a snapshot, without what is superseded; marked."""
        if self.newer:
            chunk.leave_out(upto=self.newer.head, but=self.newer.sequences)
        chunk.mark(self.number)
        return chunk


class Backlog:
    """What a connection that is behind holds.

    `left` is the unsent rest of a frame, `replies` are frames that follow it. `cursor` is the tenant's
    counter (-1: before the ring) and `position` the sequence up to which stored events have been sent,
    both counting `left`; `live_cursor` the same for live channels, which a long way back does not hold up.
    `resuming` until a start has been caught up with for the first time; it `began` then, by the loop's clock,
    and `source` is where it was read so far.
    """

    __slots__ = (
        "began", "counted", "counted_from", "cursor", "left", "live_cursor", "position", "replies",
        "resuming", "source", "waiting", "waits", "warned",
    )  # fmt: skip

    def __init__(self, *, cursor: int, live_cursor: int, position: int) -> None:
        self.left = memoryview(b"")
        self.replies: deque[bytes] = deque()
        self.cursor = cursor
        self.live_cursor = live_cursor
        self.position = position
        self.counted_from: tuple[int, int] | None = None  # the cursor and version for which ...
        self.counted = 0  # ... up to this counter
        self.waits = 0  # so many bytes wait
        self.warned = 0  # the client knows that something up to there was deleted
        self.resuming = False
        self.began = 0.0
        self.source = RING
        self.waiting: list[Group] = []


class Outlet:
    """One connection's place in the fan-out.

    `whole`: the link cannot say how much it took (TLS), so that what is handed to it waits as one piece.
    `framing`: what its link makes of the frames of events, if anything. `mask` is its share of the tick that
    is being sent, until it has been.
    """

    __slots__ = (
        "backlog", "catch_ups", "client", "fanout", "framing", "lags", "live", "mask", "numbers", "send",
        "stored", "version", "whole",
    )  # fmt: skip

    def __init__(
        self, *, send: Callable[[bytes], int], client: Client, whole: bool, framing: Framing | None = None
    ) -> None:
        self.send = send
        self.client = client
        self.whole = whole
        self.framing = framing
        self.fanout: Fanout | None = None
        self.stored: dict[Topic, int] = {}
        self.live: dict[Topic, int] = {}
        self.mask = 0
        self.backlog: Backlog | None = None
        self.catch_ups: list[CatchUp] = []
        self.lags = NO_LAGS  # of subscriptions that have another than the default; replaced, never changed
        self.numbers = 0
        self.version = 0  # changes with the stored subscriptions of the main flow

    # --- sending -----------------------------------------------------------------------------------

    def position(self) -> int:
        """The live position P, to be told or gone by. What it counts is sent first, as far as it is taken."""
        self.settle()
        if self.backlog is not None:
            return self.backlog.position
        return self.fanout.position() if self.fanout else 0

    def try_send(self, data: bytes) -> int:
        """What the link took. A link that is lost takes everything: its connection is about to end."""
        try:
            return self.send(data)
        except LinkLost:
            self.client.link_lost()
            return len(data)

    def push(self, frame: bytes) -> None:
        """Sends a reply, a heartbeat or the like in its turn: after the events up to P, before others."""
        self.settle()
        backlog = self.backlog
        if backlog and (backlog.left or backlog.replies):
            backlog.replies.append(frame)
            return
        sent = self.try_send(frame)
        if sent < len(frame):
            left = memoryview(frame)[sent:]
            if backlog:
                backlog.left = left
                self.client.fell_behind()
            else:
                self.fall_behind(left)

    def settle(self) -> None:
        """Sends the share of the running tick now, so that what follows comes after it."""
        if self.mask and self.backlog is None and self.fanout and self.fanout.running:
            tick, mask = self.fanout.running, self.mask
            self.mask = 0
            data = self.fanout.join(tick, mask, self.framing)
            self.took(tick, mask, data, self.try_send(data))

    def took(self, tick: Tick, mask: int, data: bytes, sent: int) -> None:
        """Notes how much of a tick's share the link took, and counts what need not be sent again."""
        if self.whole or sent == len(data):
            if self.fanout:
                self.fanout.traffic.add(mask.bit_count(), len(data))
            if sent < len(data):
                self.fall_behind(memoryview(data)[sent:])
            return
        chunk = Chunk(cursor=tick.last, position=tick.head)
        chunk.add(tick, mask)
        chunk.become(self.framing)
        left = chunk.cut(sent)
        self.count(chunk, sent + len(left))
        self.fall_behind(left, cursor=chunk.cursor, position=chunk.position)

    def fall_behind(
        self, left: memoryview, *, cursor: int | None = None, position: int | None = None
    ) -> Backlog:
        """From now on reads by itself, after `left`; by default from P on."""
        now = self.fanout.count if self.fanout else 0
        self.backlog = Backlog(
            cursor=now if cursor is None else cursor,
            live_cursor=now if cursor is None else cursor,
            position=self.position() if position is None else position,
        )
        self.backlog.left = left
        self.watch()
        self.client.fell_behind()
        return self.backlog

    def give(self, chunk: Chunk, backlog: Backlog, *, live: bool = False) -> None:
        """Sends a chunk of the main flow (or of its live channels) to a connection that is behind."""
        if chunk.passed:
            # To its end, once begun: else what its gap counts would be counted again.
            chunk.become(self.framing)
            events = b"".join(chunk.frames)
            self.count(chunk, len(events))
            data = bytes(backlog.left) + b"".join(backlog.replies) + events
            backlog.replies.clear()
            backlog.left = memoryview(data)[self.try_send(data) if not backlog.left else 0 :]
        else:
            backlog.left = self.hand_over(chunk)
        if live:
            backlog.live_cursor = chunk.cursor
        else:
            backlog.cursor, backlog.position = chunk.cursor, chunk.position

    def hand_over(self, chunk: Chunk) -> memoryview:
        """Sends a chunk; what is left of the frame that the link did not take wholly."""
        if not chunk.frames:
            return memoryview(b"")
        chunk.become(self.framing)
        data = b"".join(chunk.frames)
        sent = self.try_send(data)
        left = memoryview(data)[sent:] if self.whole else chunk.cut(sent)
        self.count(chunk, sent + len(left))
        return left

    def count(self, chunk: Chunk, size: int) -> None:
        """Adds a chunk to the tenant's traffic."""
        if self.fanout:
            self.fanout.traffic.add(len(chunk.frames), size)

    def rejoin(self) -> list[Group]:
        """Up to date again, if it is: the groups that are live now. No await between test and flip."""
        backlog, fanout = self.backlog, self.fanout
        if backlog is None or backlog.left or backlog.replies:
            return []
        if fanout:
            if backlog.cursor < fanout.count or (self.live and backlog.live_cursor < fanout.count):
                return []
            fanout.strict.discard(self)
        self.backlog = None
        self.mask = 0  # the running tick is in the ring and was read there
        return backlog.waiting

    # --- reading on --------------------------------------------------------------------------------

    def next_live(self, backlog: Backlog) -> Chunk | None:
        """The next live events of a connection that is behind; None when it has them all."""
        fanout = self.fanout
        if fanout is None or not self.live or backlog.live_cursor >= fanout.count:
            backlog.live_cursor = fanout.count if fanout else 0
            return None
        return from_ring(fanout, self.reading(self.live), cursor=backlog.live_cursor)

    def next_stored(self, backlog: Backlog) -> Chunk | None:
        """The next stored events from the ring; None when they are older than that."""
        fanout = self.fanout
        if fanout is None or not self.stored:
            now, head = (fanout.count, fanout.position()) if fanout else (0, 0)
            return Chunk(cursor=now, position=max(head, backlog.position))
        if not in_ring(backlog, fanout.ring):
            return None
        return from_ring(fanout, self.reading(self.stored), cursor=backlog.cursor)

    def reading(self, topics: Mapping[Topic, int]) -> Reading:
        """The topics by their lag policies."""
        by_lag: dict[str, dict[Topic, int]] = {}
        for topic, floor in topics.items():
            lag = self.lags.get(topic.pattern, "drop" if topic.live else "replay")
            # Stored events that are dropped are dropped by `overflow`; what is left is read as it is.
            kind = lag if lag == "latest" or (lag == "drop" and topic.live) else "every"
            by_lag.setdefault(kind, {})[topic] = floor
        return Reading(
            every=by_lag.get("every", {}), latest=by_lag.get("latest", {}), few=by_lag.get("drop", {})
        )

    def next_of(self, catch_up: CatchUp) -> Chunk | None:
        """The next events of a catch-up from the ring, up to P; None when they are older than that."""
        fanout = self.fanout
        if fanout is None or catch_up.position < fanout.ring.floor_head:
            return None
        limit = self.position()
        chunk = Chunk(cursor=-1, position=catch_up.position)
        for tick in fanout.ring.after(fanout.ring.cursor(catch_up.position)):
            mask = tick.share(catch_up.topics, after=tick.before(catch_up.position))
            if tick.head > limit:
                mask &= (1 << tick.before(limit)) - 1
            chunk.add(tick, mask)
            chunk.position = min(tick.head, limit)
            if chunk.full() or tick.head >= limit:
                break
        else:
            chunk.position = max(limit, chunk.position)
        return catch_up.choose(chunk)

    def next_of_snapshot(self, catch_up: CatchUp, snapshot: Snapshot) -> Chunk:
        """The next events of a snapshot; the catch-up goes on after its head."""
        chunk = Chunk(cursor=-1, position=snapshot.head)
        for page, left in snapshot.after(catch_up.position):
            if chunk.full():
                break
            if self.fanout and page.topics is not self.fanout:
                page.move(self.fanout)  # others that read it may be in the next fan-out already
            chunk.add(page, page.share(catch_up.topics, after=page.before(catch_up.position)) & left)
            chunk.position = page.head
        else:
            chunk.position = snapshot.head
        chunk.mark(catch_up.number)
        return chunk

    # --- too far behind ----------------------------------------------------------------------------

    def watch(self) -> None:
        """Has the tenant look how much waits, if a policy depends on it. A start that is behind may be."""
        strict = any(
            lag == "close" or (lag == "drop" and not pattern.startswith("live."))
            for pattern, lag in self.lags.items()
        )
        if self.fanout and self.backlog and strict and not self.backlog.resuming:
            self.fanout.strict.add(self)

    def overflow(self) -> None:
        """As much as may be waits for the connection: close it, or let go of what may be dropped."""
        backlog, fanout = self.backlog, self.fanout
        if backlog is None or fanout is None:
            return
        if "close" in self.lags.values():
            self.client.too_slow()
            return
        dropped = {
            topic: floor for topic, floor in self.stored.items() if self.lags.get(topic.pattern) == "drop"
        }
        head, count = fanout.position(), None
        if in_ring(backlog, fanout.ring):
            ticks = fanout.ring.after(backlog.cursor)
            count = sum(
                tick.share(dropped, after=max(0, backlog.cursor - tick.first + 1)).bit_count()
                for tick in ticks
            )
        start = fanout.text(backlog.position)
        self.stored.update(dict.fromkeys(dropped, head))
        self.version += 1
        everything = len(dropped) == len(self.stored)
        if everything:
            backlog.cursor, backlog.position = fanout.count, head
        self.client.tell(
            Gap(
                channel=named(topic.pattern for topic in dropped),
                reason="lag",
                start=start,
                end=fanout.text(head) if everything else UNSET,
                count=UNSET if count is None else count,
            )
        )

    def unsent(self, limit: int) -> bool:
        """Whether `limit` bytes or more wait for a connection that is behind."""
        backlog, fanout = self.backlog, self.fanout
        if backlog is None or fanout is None:
            return False
        if not in_ring(backlog, fanout.ring):
            return True
        if backlog.counted_from != (backlog.cursor, self.version):  # it has moved on, or wants other things
            backlog.counted_from = backlog.cursor, self.version
            backlog.counted = backlog.cursor
            backlog.waits = 0
        topics = self.stored | self.live
        for tick in fanout.ring.after(backlog.counted):
            if mask := tick.share(topics, after=max(0, backlog.counted - tick.first + 1)):
                backlog.waits += len(tick.join(mask))
            backlog.counted = tick.last
            if len(backlog.left) + backlog.waits >= limit:
                break
        return len(backlog.left) + backlog.waits >= limit

    # --- subscriptions -----------------------------------------------------------------------------

    def detach(self) -> None:
        """Ends all subscriptions, and leaves the tenant. What is unsent stays."""
        try:
            if self.fanout:
                self.fanout.detach(self)
        finally:
            self.catch_ups = []

    def join(self, topic: Topic, floor: int) -> None:
        """Makes a topic part of the main flow, from what is above `floor` on."""
        (self.live if topic.live else self.stored)[topic] = floor
        topic.members[self] = None
        self.version += 1

    def find(self, pattern: str) -> Topic | None:
        """The topic that stands for a subscription, wherever it is."""
        for topics in (self.stored, self.live, *(catch_up.topics for catch_up in self.catch_ups)):
            for topic in topics:
                if topic.pattern == pattern:
                    return topic
        return None

    def leave(self, pattern: str) -> None:
        """Ends a subscription: no frame of it follows."""
        self.settle()
        topic = self.find(pattern)
        if topic is None or self.fanout is None:
            return
        for topics in (self.stored, self.live, *(catch_up.topics for catch_up in self.catch_ups)):
            topics.pop(topic, None)
        topic.members.pop(self, None)
        if pattern in self.lags:
            self.lags = {each: lag for each, lag in self.lags.items() if each != pattern}
        self.version += 1
        for group in self.groups():
            group.patterns.pop(pattern, None)
        self.catch_ups = [catch_up for catch_up in self.catch_ups if catch_up.topics]
        self.fanout.release(topic)

    def retune(self, pattern: str, deny: tuple[str, ...]) -> None:
        """Leaves other channels out of a subscription, from what is not sent yet on."""
        self.settle()
        old = self.find(pattern)
        if old is None or self.fanout is None:
            return
        new = self.fanout.acquire(pattern, deny)
        for topics in (self.stored, self.live, *(catch_up.topics for catch_up in self.catch_ups)):
            if old in topics:
                topics[new] = topics.pop(old)
        if old.members.pop(self, self) is None:
            new.members[self] = None
        self.version += 1
        self.fanout.release(old)

    def sent(self, patterns: Iterable[str]) -> int:
        """The newest position that was sent for some subscriptions: P, or that of their catch-up."""
        of = {pattern: each for each in self.catch_ups for pattern in (t.pattern for t in each.topics)}
        return max(of[pattern].position if pattern in of else self.position() for pattern in patterns)

    def groups(self) -> list[Group]:
        """The groups that wait to be announced as live."""
        waiting = list(self.backlog.waiting) if self.backlog else []
        return waiting + [group for catch_up in self.catch_ups for group in catch_up.groups]


def in_ring(backlog: Backlog, ring: Ring) -> bool:
    """Whether all that comes next is in the ring; notes from where on, when only the position was known."""
    if backlog.cursor < ring.floor and backlog.position >= ring.floor_head:
        backlog.cursor = ring.cursor(backlog.position)
    return backlog.cursor >= ring.floor
