"""The actor of one tenant with clients: takes what has arrived as one batch, and fans it out."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

import attrs
import structlog
import trio

from broker.actors.boundary import Boundary
from broker.actors.fanout import TICK_BYTES, TICK_EVENTS, Fanout
from broker.actors.transport import LinkLost
from broker.actors.turns import Turn
from broker.limits import Window
from broker.metrics.meters import Traffic
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker import config
    from broker.actors.following import Followers
    from broker.actors.intake import Intake
    from broker.actors.outlet import Outlet
    from broker.bus.base import Record
    from broker.features.replay import Checked, History
    from broker.features.snapshots import Snapshots
    from broker.metrics.meters import Meters
    from broker.ranges import Ranges
    from broker.ring import Tick
    from broker.tracing import Tracing
    from broker.wire.messages import Source
    from broker.wire.positions import Position

INBOX_EVENTS = 16384  # beyond either bound the tenant is behind, and reads from the stream instead
INBOX_BYTES = 16 * 1024 * 1024
SENDS_BETWEEN_LOOKS = 32  # at the clock
RESTART_SECONDS = 0.1, 5.0  # back-off after a crash: at first, at most
CRASHES, CRASH_SECONDS = 8, 60.0  # so many within this time are too many
REST_SECONDS = 30.0  # after too many

log = structlog.get_logger()


@attrs.frozen
class Notice:
    """What all clients are told at once: a message, and that live events may be missing for a `reason`."""

    message: Source | None
    reason: Literal["source", "lag"] | None


@attrs.frozen
class Hole:
    """The feed has come to the position `upto`, and something on its way there is gone."""

    upto: Position


class Inbox:
    """What has arrived and is not fanned out yet, bounded. `lost`: the bound was passed, all was dropped.

    `renewed`: the stream began anew; what was in here belonged to the old one. `notices` stand among the
    events: each comes after so many that were ever taken.
    """

    def __init__(self) -> None:
        self.records: deque[Checked] = deque()
        self.size = 0
        self.taken = 0  # so many events, ever
        self.marks: deque[tuple[int, float]] = deque()  # taken to there, the oldest was stored then
        self.stored_at: float | None = None  # the oldest of the last tick's worth, where it is known
        self.lost = False
        self.renewed = False
        self.notices: deque[tuple[int, Notice | Hole]] = deque()
        self.arrived = trio.Event()

    def put(self, channel: str, record: Record) -> None:
        if self.lost:
            return
        self.records.append((channel, record))
        self.size += len(record[2])
        if len(self.records) > INBOX_EVENTS or self.size > INBOX_BYTES:
            self.lose()

    def wake(self, stored_at: float | None) -> None:
        """Some have been put; NATS stored the oldest of what came at once at `stored_at` (Unix seconds)."""
        if stored_at is not None and self.records:
            self.marks.append((self.taken + len(self.records), stored_at))
        self.arrived.set()

    def announce(self, notice: Notice | Hole) -> None:
        self.notices.append((self.taken + len(self.records), notice))
        self.arrived.set()

    def due(self) -> Notice | Hole | None:
        """The notice that comes before the next event."""
        if self.notices and self.notices[0][0] <= self.taken:
            return self.notices.popleft()[1]
        return None

    def clear(self) -> None:
        self.notices = deque((self.taken, notice) for _, notice in self.notices)
        self.marks.clear()
        self.records.clear()
        self.size = 0

    def begin(self) -> None:
        """Takes in again what comes."""
        self.clear()
        self.lost = self.renewed = False

    def lose(self) -> None:
        self.clear()
        self.lost = True
        self.arrived.set()

    def renew(self) -> None:
        self.clear()
        self.renewed = True
        self.arrived.set()

    def take(self) -> list[Checked]:
        """The next tick's worth, up to the next notice."""
        before = self.notices[0][0] - self.taken if self.notices else TICK_EVENTS
        batch = take(self.records, min(before, TICK_EVENTS))
        self.size -= sum(len(record[2]) for _, record in batch)
        self.taken += len(batch)
        self.stored_at = None
        while self.marks and self.marks[0][0] <= self.taken:
            _, stored_at = self.marks.popleft()
            self.stored_at = self.stored_at or stored_at
        return batch

    def empty(self) -> bool:
        return not (self.records or self.lost or self.renewed or self.notices)

    async def wait(self) -> None:
        if self.empty():
            self.arrived = trio.Event()
            await self.arrived.wait()


def take(records: deque[Checked], most: int = TICK_EVENTS) -> list[Checked]:
    """Takes off a tick's worth."""
    batch: list[Checked] = []
    size = 0
    while records and len(batch) < most and size < TICK_BYTES:
        checked = records.popleft()
        size += len(checked[1][2])
        batch.append(checked)
    return batch


@attrs.frozen(kw_only=True)
class TenantStatistics:
    connections: int
    behind: int
    lag_sum: int  # of those that are behind, in positions
    lag_max: int
    topics: int
    ring_events: int
    ring_bytes: int
    restarts: int


@attrs.define(eq=False)
class Tenant:
    """One tenant's fan-out, history and inbox.

    After a crash, after falling behind the feed and when the stream begins anew it makes a new fan-out,
    into which its connections move with their positions.
    """

    name: str
    bounds: config.Ring
    outbound_bytes: int
    intake: Intake
    make_history: Callable[[str, Fanout], History]
    make_snapshots: Callable[[str, Fanout], Snapshots]
    followers: Followers
    advanced: trio.lowlevel.ParkingLot  # of those that wait for the tenant to come further
    meters: Meters
    tracing: Tracing | None = None
    inbox: Inbox = attrs.Factory(Inbox)
    traffic: Traffic = attrs.Factory(Traffic)  # since it was last read
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    fanout: Fanout = attrs.field(init=False)
    moving: Fanout | None = None  # the next one while it is filled, then the one before while it is left
    passing: bool = False  # something that is gone: not everybody has been told yet
    used: float = 0.0  # when it last had a connection
    failed_until: float | None = None  # it has crashed too often, and rests
    restarts: int = 0

    def __attrs_post_init__(self) -> None:
        self.fanout, filling = self.begin_fanout(count=0)
        for _ in filling:
            pass

    def begin_fanout(self, *, count: int) -> tuple[Fanout, Iterator[None]]:
        """A fan-out without clients, and what fills its ring with what the intake remembers, bit by bit."""
        floor, recent = self.intake.recent_of(self.name)
        fanout = Fanout(
            bounds=self.bounds,
            incarnation=self.intake.incarnation,
            head=floor,
            clock=trio.current_time,
            feed=self,
            traffic=self.traffic,
            count=count,
            traced=self.tracing is not None and self.tracing.settings.clients,
        )
        fanout.history = self.make_history(self.name, fanout)
        fanout.snapshots = self.make_snapshots(self.name, fanout)
        return fanout, self.fill(fanout, deque(recent))

    def fill(self, fanout: Fanout, remembered: deque[Checked]) -> Iterator[None]:
        """Puts events into the ring, a tick at a time, but for what is deleted meanwhile."""
        while batch := take(remembered):
            late = self.intake.gone.late([record for _, record in batch])
            if batch := [checked for checked in batch if checked[1][0] not in late]:
                fanout.add(batch)
            yield
        fanout.finish()

    def fanouts(self) -> tuple[Fanout, ...]:
        """All that hold something: two while everybody moves."""
        return (self.fanout, self.moving) if self.moving else (self.fanout,)

    def outlets(self) -> list[Outlet]:
        """All of its connections."""
        return [outlet for fanout in self.fanouts() for outlet in fanout.outlets]

    def needs_live(self) -> bool:
        """Whether a connection has a subscription to a live channel, or is about to have one."""
        return any(topic.live for fanout in self.fanouts() for topic in fanout.topics.values())

    def quiet_at(self) -> int | None:
        at_rest = self.inbox.empty() and self.moving is None and not self.passing
        return self.intake.head if at_rest else None

    async def run(self) -> None:
        """Works until cancelled through `scope`; a crash costs a moment, and no event.

        After too many crashes it gives up: its clients are sent away, and it rests for a while.
        """
        first, longest = RESTART_SECONDS
        crashes = Window(limit=CRASHES, seconds=CRASH_SECONDS)
        with self.scope:
            while True:
                try:
                    await self.work()
                except Exception:  # whatever it is, it is one tenant's and must not end the others'
                    self.restarts += 1
                    log.exception("tenant_crashed", tenant=self.name, restarts=self.restarts)
                if crashes.hit(trio.current_time()):
                    break
                self.inbox.lose()  # so that its work begins with a new fan-out
                pause = min(longest, first * 2 ** len(crashes.times))
                await trio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
            self.failed_until = trio.current_time() + REST_SECONDS
            log.error("tenant_gave_up", tenant=self.name, seconds=REST_SECONDS)
            turn = Turn()
            for outlet in self.outlets():
                outlet.client.send_away()
                await turn.pass_on()

    async def work(self) -> None:
        inbox, turn = self.inbox, Turn()
        while True:
            await inbox.wait()  # which is no pause while something waits
            await turn.pass_on()
            if notice := inbox.due():
                await self.heed(notice, turn)
            elif inbox.renewed or inbox.lost:
                await self.rebuild(turn)
            elif batch := inbox.take():
                upto = next((record[0] for _, record in reversed(batch) if record[0]), 0)
                await self.tell_of_hole(upto, turn)
                if inbox.lost or inbox.renewed:
                    continue  # meanwhile; nobody has come further
                # No await from here until the position has moved on: who joins before it is told.
                if late := self.intake.gone.late([record for _, record in batch]):
                    batch = [checked for checked in batch if checked[1][0] not in late]
                    if not batch:
                        self.move_on(upto)
                        continue
                if self.tracing is None:
                    tick = self.fanout.add(batch, upto=upto)
                    await self.send(tick, turn)
                else:
                    tick = await self.send_traced(batch, upto, turn, self.tracing)
                self.fanout.finish()
                self.advanced.unpark_all()
                slow = await self.overflowing(turn)
                if self.followers:
                    with Boundary(self.followers):
                        self.followers.sent(self.name, self.fanout, batch, tick, slow)
                for outlet in slow:
                    with Boundary(outlet.client):
                        outlet.overflow()

    async def heed(self, notice: Notice | Hole, turn: Turn) -> None:
        """What comes between two events."""
        if isinstance(notice, Notice):
            for outlet in list(self.fanout.outlets):
                with Boundary(outlet.client):
                    outlet.client.heed_notice(notice)
                await turn.pass_on()
        elif notice.upto.incarnation == self.fanout.incarnation:
            await self.tell_of_hole(notice.upto.sequence, turn)
            if not (self.inbox.lost or self.inbox.renewed):
                self.move_on(notice.upto.sequence)

    def move_on(self, position: int) -> None:
        """There is nothing more to fan out up to a position."""
        self.fanout.head = max(self.fanout.head, position)
        self.advanced.unpark_all()

    async def tell_of_hole(self, upto: int, turn: Turn) -> None:
        """Before the position comes to `upto`: whoever is up to date is told when something was deleted.

        Who is behind comes to it and hears of it then. When this returns all have been told who stand at the
        position, also those who came there meanwhile; so it must be moved before anybody else comes.
        """
        fanout = self.fanout
        if not self.intake.gone.between(self.name, fanout.head, upto, lambda _: True):
            return
        start = fanout.text(fanout.head)
        told: dict[Outlet, int] = {}  # with which subscriptions
        self.passing = True
        try:
            while untold := [
                outlet
                for outlet in fanout.outlets
                if outlet.stored and outlet.backlog is None and told.get(outlet) != outlet.version
            ]:
                for outlet in untold:
                    if outlet.stored and outlet.backlog is None:
                        told[outlet] = outlet.version
                        with Boundary(outlet.client):
                            channel = named(topic.pattern for topic in outlet.stored)
                            outlet.client.tell(Gap(channel=channel, reason="trimmed", start=start))
                    await turn.pass_on()
        finally:
            self.passing = False

    async def overflowing(self, turn: Turn) -> list[Outlet]:
        """The connections for which more waits than their policy allows."""
        slow = []
        for outlet in list(self.fanout.strict):
            with Boundary(outlet.client):
                if outlet.unsent(self.outbound_bytes):
                    slow.append(outlet)
            await turn.pass_on()
        return slow

    async def send_traced(self, batch: list[Checked], upto: int, turn: Turn, tracing: Tracing) -> Tick:
        """Fans out a batch with a span for each event that is traced."""
        with tracing.fanning_out(self.name, batch) as spans:
            tick = self.fanout.add(batch, upto=upto)
            for index, span in spans.items():
                span.set_attribute("broker.audience", self.fanout.audience(tick, index))
                if sequence := batch[index][1][0]:
                    span.set_attribute("broker.position", self.fanout.text(sequence))
            await self.send(tick, turn)
        return tick

    async def send(self, tick: Tick, turn: Turn) -> None:
        """One write for each connection that gets something of the tick."""
        sends = deliveries = total = 0
        for data, mask, outlets in self.fanout.shares(tick):
            size = len(data)
            passed = 0
            for outlet in outlets:
                if outlet.mask and outlet.backlog is None:
                    try:
                        sent = outlet.send(data)
                        outlet.mask = 0
                        if sent != size:
                            outlet.took(tick, mask, data, sent)
                            passed += 1  # counted there
                    except LinkLost:
                        outlet.mask = 0
                        outlet.client.link_lost()
                        passed += 1
                    except Exception as error:  # whatever it is, it is that connection's
                        outlet.client.crashed(error)
                        passed += 1
                else:
                    outlet.mask = 0  # its share went with a reply, or it reads the ring by itself
                    passed += 1
                sends += 1
                if not sends % SENDS_BETWEEN_LOOKS:
                    await turn.pass_on()
            reached = len(outlets) - passed
            deliveries += mask.bit_count() * reached
            total += size * reached
        self.traffic.add(deliveries, total)
        self.measure(tick, written=sends > 0)

    def measure(self, tick: Tick, *, written: bool) -> None:
        """What a tick has taken, when somebody got something of it."""
        meters, stored_at = self.meters, self.inbox.stored_at
        meters.batch.observe(len(tick.frames))
        if written:
            meters.fan_out.observe(trio.current_time() - tick.time)
            if stored_at is not None:
                meters.latency.observe(max(0.0, time.time() - stored_at))

    async def rebuild(self, turn: Turn) -> None:
        """Moves all connections into a new fan-out, to go on from where each has come to.

        They stand still meanwhile. Without a new one the old one keeps them, for the next try, and a
        connection that cannot be moved ends: so each is in one of the two at any time.
        """
        same_stream = self.fanout.incarnation == self.intake.incarnation
        log.warning("tenant_rebuilt", tenant=self.name, new_stream=not same_stream)
        old = self.fanout
        self.inbox.begin()  # what comes from now on comes after what the intake remembers now
        new, filling = self.begin_fanout(count=old.count + 1)
        self.moving = new
        for _ in filling:
            await turn.pass_on()
        self.fanout, self.moving = new, old
        while old.outlets:
            outlet, _ = old.outlets.popitem()
            with Boundary(outlet.client):
                position = old.reached(outlet) if same_stream else 0
                new.adopt(outlet, position=position, same_stream=same_stream)
                tell_of_loss(outlet, new, same_stream=same_stream)
            await turn.pass_on()
        self.moving = None
        self.advanced.unpark_all()

    def drop(self, deleted: Ranges) -> None:
        """Gives nobody what was deleted."""
        for fanout in self.fanouts():
            fanout.drop(deleted)
            fanout.history.blank(deleted)
            fanout.snapshots.blank(deleted)

    def shorten(self, before: float) -> None:
        """Forgets the events that came before a time; the stream is read for them."""
        for fanout in self.fanouts():
            ring = fanout.ring
            while ring.oldest is not None and ring.ticks[ring.start].time < before:
                if ring.ticks[ring.start] is fanout.running:
                    break
                ring.drop()
            fanout.history.clear()
            fanout.snapshots.expire(math.inf)

    def statistics(self) -> TenantStatistics:
        ring, head, outlets = self.fanout.ring.statistics(), self.fanout.head, self.outlets()
        lags = [max(0, head - each.backlog.position) for each in outlets if each.backlog]
        return TenantStatistics(
            connections=len(outlets),
            behind=len(lags),
            lag_sum=sum(lags),
            lag_max=max(lags, default=0),
            topics=len(self.fanout.topics),
            ring_events=ring.events,
            ring_bytes=ring.size,
            restarts=self.restarts,
        )


def tell_of_loss(outlet: Outlet, fanout: Fanout, *, same_stream: bool) -> None:
    """Says what a new fan-out cannot bring: live events that were on the way, or the old stream's."""
    if outlet.live:
        outlet.client.tell(Gap(channel=named(topic.pattern for topic in outlet.live), reason="source"))
    if same_stream:
        return
    start = fanout.text(0)
    if outlet.stored:
        channel = named(topic.pattern for topic in outlet.stored)
        outlet.client.tell(Gap(channel=channel, reason="reset", end=start))
    for catch_up in outlet.catch_ups:
        channel = named(topic.pattern for topic in catch_up.topics)
        outlet.client.tell(Gap(channel=channel, reason="reset", end=start, catch_up=catch_up.number))
