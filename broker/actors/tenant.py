"""The actor of one tenant with clients: takes what has arrived as one batch, and fans it out."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.actors.boundary import Boundary
from broker.actors.inbox import Hole, Inbox, take
from broker.backoff import Backoff
from broker.eventlog.log import EventLog
from broker.eventlog.places import at, sequence_of
from broker.flow.client import Notice
from broker.flow.overflow import overflow, overflows
from broker.limits import Window
from broker.metrics.meters import Traffic
from broker.turns import Turn
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker import config
    from broker.actors.following import Followers
    from broker.actors.intake import Intake
    from broker.eventlog.history import Checked, History
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Snapshots
    from broker.eventlog.tick import Tick
    from broker.flow.flow import Flow
    from broker.metrics.meters import Meters
    from broker.ranges import Ranges
    from broker.tracing import Tracing

SENDS_BETWEEN_LOOKS = 32  # sends between two looks at the clock
BACKOFF = Backoff(first=0.1, longest=5.0, jitter=0.5)  # after a crash
CRASHES, CRASH_SECONDS = 8, 60.0  # so many crashes within this time are too many
REST_SECONDS = 30.0  # after too many crashes

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class TenantStatistics:
    connections: int
    behind: int
    lag_sum: int  # of those that are behind, in positions
    lag_max: int
    selections: int
    filters: int
    held: int  # events, for paced subscriptions
    ring_events: int
    ring_bytes: int
    restarts: int


@attrs.define(eq=False, repr=False)
class Tenant:
    """One tenant's log, its connections and its inbox.

    It creates a new log, to which its connections move, after a crash, after falling behind the feed, and
    when the stream is recreated.
    """

    name: str
    bounds: config.Ring
    outbound_bytes: int
    paced_channels: int
    intake: Intake
    make_history: Callable[[str, EventLog], History]
    make_snapshots: Callable[[str, EventLog], Snapshots]
    followers: Followers
    advanced: trio.lowlevel.ParkingLot  # of tasks that wait for the tenant to advance
    meters: Meters
    tracing: Tracing | None = None
    inbox: Inbox = attrs.Factory(Inbox)
    traffic: Traffic = attrs.Factory(Traffic)  # since the last scrape
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    flows: dict[Flow, None] = attrs.Factory(dict)  # of all of its connections
    log: EventLog = attrs.field(init=False)
    logs: tuple[EventLog, ...] = attrs.field(init=False)  # more than one while connections move
    passing: bool = False  # passing deleted events, of which not all connections have been told
    used: float = 0.0  # when it last had a connection
    failed_until: float | None = None  # set when it has crashed too often
    restarts: int = 0

    def __attrs_post_init__(self) -> None:
        self.log, filling = self.begin_log()
        self.logs = (self.log,)
        for _ in filling:
            pass

    def begin_log(self) -> tuple[EventLog, Iterator[None]]:
        """Return a log without members, and an iterator that fills it step by step from the
        intake's memory.
        """
        floor, recent = self.intake.recent_of(self.name)
        made = EventLog(
            bounds=self.bounds,
            incarnation=self.intake.incarnation,
            position=floor,
            clock=trio.current_time,
            feed=self,
            traffic=self.traffic,
            traced=self.tracing is not None and self.tracing.settings.clients,
        )
        made.lanes.most = self.paced_channels
        made.history = self.make_history(self.name, made)
        made.snapshots = self.make_snapshots(self.name, made)
        return made, self.fill(made, deque(recent), self.intake.head)

    def fill(self, made: EventLog, remembered: deque[Checked], upto: int) -> Iterator[None]:
        """Put events into a log, one tick at a time, except those deleted meanwhile.

        They are all the events up to the position `upto`, which connections may have been told already.
        """
        while batch := take(remembered):
            late = self.intake.gone.late([record for _, record in batch])
            if batch := [checked for checked in batch if checked[1][0] not in late]:
                made.append(batch)
                made.finish()
            yield
        made.head = max(made.head, at(upto))

    def enter(self, flow: Flow) -> None:
        """Add a connection."""
        flow.attach(self.log)
        self.flows[flow] = None

    def leave(self, flow: Flow) -> None:
        """End the subscriptions of a connection, and remove it."""
        self.flows.pop(flow, None)
        flow.detach()

    def needs_unstored(self) -> bool:
        """Return whether a connection has, or is about to have, a subscription to a live channel."""
        return any(each.unstored for held in self.logs for each in held.selections.values())

    def quiet_at(self) -> int | None:
        at_rest = self.inbox.empty() and len(self.logs) == 1 and not self.passing
        return self.intake.head if at_rest else None

    def deleted(self, after: int, upto: int, admits: Callable[[str], bool]) -> bool:
        return self.intake.gone.between(self.name, after, upto, admits)

    async def run(self) -> None:
        """Work until cancelled through `scope`; after a crash it resumes shortly, without losing events.

        After too many crashes it gives up: it ends its connections, and pauses for a while.
        """
        crashes = Window(limit=CRASHES, seconds=CRASH_SECONDS)
        with self.scope:
            while True:
                try:
                    await self.work()
                except Exception:  # any: it must not affect other tenants
                    self.restarts += 1
                    log.exception("tenant_crashed", tenant=self.name, restarts=self.restarts)
                self.inbox.lose()  # work resumes with a new log; until then P does not advance
                if crashes.hit(trio.current_time()):
                    break
                await trio.sleep(BACKOFF.delay(len(crashes.times)))
            self.failed_until = trio.current_time() + REST_SECONDS
            log.error("tenant_gave_up", tenant=self.name, seconds=REST_SECONDS)
            turn = Turn()
            for flow in list(self.flows):
                flow.client.send_away()
                await turn.pass_on()

    async def work(self) -> None:
        inbox, turn = self.inbox, Turn()
        while True:
            due = self.log.lanes.next()
            if due == math.inf:
                await inbox.wait()  # returns without a checkpoint while something waits
            else:
                with trio.move_on_at(due):
                    await inbox.wait()
            await turn.pass_on()
            await self.give_due(turn)
            if notice := inbox.due():
                await self.heed(notice, turn)
            elif inbox.renewed or inbox.lost:
                await self.rebuild(turn)
            elif batch := inbox.take(self.log.tick_events):
                await self.fan_out(batch, turn)

    async def fan_out(self, batch: list[Checked], turn: Turn) -> None:
        """Append a batch as a tick, and send it."""
        upto = next((record[0] for _, record in reversed(batch) if record[0]), 0)
        await self.tell_of_hole(upto, turn)
        if self.inbox.lost or self.inbox.renewed:
            return  # set meanwhile; no position has advanced
        # No await from here until the position has advanced: whoever joined before that has been told.
        if late := self.intake.gone.late([record for _, record in batch]):
            batch = [checked for checked in batch if checked[1][0] not in late]
            if not batch:
                self.move_on(upto)
                return
        if self.tracing is None:
            tick = self.log.append(batch, upto=upto)
            slow = await self.send(tick, turn)
        else:
            tick, slow = await self.send_traced(batch, upto, turn, self.tracing)
        self.log.finish()
        await self.give_due(turn)
        self.advanced.unpark_all()
        if self.followers:
            with Boundary(self.followers):
                self.followers.sent(self.name, self.log, self.flows, batch, tick, slow)
        for flow in slow:
            with Boundary(flow.client):
                overflow(flow)

    async def give_due(self, turn: Turn) -> None:
        """Write to each connection what is due in its lanes."""
        if self.log.lanes.next() > trio.current_time():
            return
        for flow, due in self.log.lanes.due().items():
            with Boundary(flow.client):
                flow.give_due(due)
            await turn.pass_on()

    async def heed(self, notice: Notice | Hole, turn: Turn) -> None:
        """Process a notice between two events."""
        if isinstance(notice, Notice):
            for flow in list(self.flows):
                with Boundary(flow.client):
                    flow.client.heed_notice(notice)
                await turn.pass_on()
        elif self.inbox.lost or self.inbox.renewed:
            return  # all connections move to a new log first, and find the hole there
        elif notice.upto.incarnation == self.log.incarnation:
            await self.tell_of_hole(notice.upto.sequence, turn)
            if not (self.inbox.lost or self.inbox.renewed):
                self.move_on(notice.upto.sequence)

    def move_on(self, position: int) -> None:
        """Note that nothing is left to fan out up to a position."""
        self.log.head = max(self.log.head, at(position))
        self.advanced.unpark_all()

    async def tell_of_hole(self, upto: int, turn: Turn) -> None:
        """Before the position reaches `upto`, report deleted events to connections that are up to date.

        Connections that are behind report them when they reach them. On return all connections at the
        position have been told, including those that reached it meanwhile, so it must advance before any
        others arrive.
        """
        events = self.log
        head = sequence_of(events.head)
        if not self.intake.gone.between(self.name, head, upto, lambda _: True):
            return
        start = events.text(head)
        told: dict[Flow, tuple[Selection, ...]] = {}  # by the subscriptions named
        self.passing = True
        try:
            while untold := [
                flow
                for flow in self.flows
                if flow.stored and flow.main is None and flow.stored is not told.get(flow)
            ]:
                for flow in untold:
                    if flow.stored and flow.main is None:
                        told[flow] = flow.stored
                        with Boundary(flow.client):
                            channel = named(each.pattern for each in flow.stored)
                            flow.client.tell(Gap(channel=channel, reason="trimmed", start=start))
                    await turn.pass_on()
        finally:
            self.passing = False
        for flow, stored in told.items():
            if flow.main is not None and flow.stored is stored:
                flow.main.warned = max(flow.main.warned, upto)  # it fell behind meanwhile, and was told

    async def send_traced(
        self, batch: list[Checked], upto: int, turn: Turn, tracing: Tracing
    ) -> tuple[Tick, list[Flow]]:
        """Fan out a batch with a span for each traced event."""
        with tracing.fanning_out(self.name, batch) as spans:
            tick = self.log.append(batch, upto=upto)
            for index, span in spans.items():
                span.set_attribute("broker.audience", self.log.audience(tick, index))
                if sequence := batch[index][1][0]:
                    span.set_attribute("broker.position", self.log.text(sequence))
            slow = await self.send(tick, turn)
        return tick, slow

    async def send(self, tick: Tick, turn: Turn) -> list[Flow]:
        """Write to each connection its share of the tick, once; return those with too much unsent."""
        sends = deliveries = total = 0
        slow: list[Flow] = []
        look = SENDS_BETWEEN_LOOKS
        for data, mask, flows in self.log.shares(tick):
            for first in range(0, len(flows), SENDS_BETWEEN_LOOKS):
                part = flows[first : first + SENDS_BETWEEN_LOOKS]
                reached = self.write(tick, mask, data, part, slow)
                deliveries += mask.bit_count() * reached
                total += len(data) * reached
                sends += len(part)
                if sends >= look:
                    look = sends + SENDS_BETWEEN_LOOKS
                    await turn.pass_on()
        self.traffic.add(deliveries, total)
        self.measure(tick, written=sends > 0)
        return slow

    def write(self, tick: Tick, mask: int, data: bytes, flows: list[Flow], slow: list[Flow]) -> int:
        """Write a share to connections. Return how many got all of it; add to `slow` as `send` returns it."""
        size = len(data)
        reached = 0
        for flow in flows:
            if flow.mask:  # otherwise its share was sent ahead of a reply
                flow.mask = 0
                if flow.main is None:
                    send = flow.send  # called as a method, a slot would be looked up in the class first
                    try:
                        sent = send(data)
                    except BlockingIOError:
                        sent = 0
                    except Exception as error:  # any: it ends that connection alone
                        flow.failed(error)
                        continue
                    if sent == size:
                        reached += 1
                    else:
                        with Boundary(flow.client):
                            flow.short(tick, mask, data, sent)
                elif flow.options is not None:  # it reads the tick on its own
                    with Boundary(flow.client):
                        if overflows(flow, size, self.outbound_bytes):
                            slow.append(flow)
        return reached

    def measure(self, tick: Tick, *, written: bool) -> None:
        """Record the metrics of a tick; times only if something was written."""
        meters, stored_at = self.meters, self.inbox.stored_at
        meters.batch.observe(len(tick.frames))
        if written:
            meters.fan_out.observe(trio.current_time() - tick.time)
            if stored_at is not None:
                meters.latency.observe(max(0.0, time.time() - stored_at))

    async def rebuild(self, turn: Turn) -> None:
        """Move all connections to a new log, each to continue from its place.

        They stand still meanwhile. If creating it fails, the old log keeps them for the next attempt.
        """
        same_stream = self.log.incarnation == self.intake.incarnation
        log.warning("tenant_rebuilt", tenant=self.name, new_stream=not same_stream)
        self.inbox.begin()  # what arrives from now on follows what the intake remembers now
        made, filling = self.begin_log()
        self.logs = (*self.logs, made)
        for _ in filling:
            await turn.pass_on()
        self.log = made
        for flow in list(self.flows):
            with Boundary(flow.client):
                if flow.log is not None and flow.log is not made:
                    flow.move(made)
            await turn.pass_on()
        self.logs = (made,)
        self.advanced.unpark_all()

    def drop(self, deleted: Ranges) -> None:
        """Deliver deleted events to nobody."""
        for held in self.logs:
            held.drop(deleted)
            held.history.blank(deleted)
            held.snapshots.blank(deleted)

    def shorten(self, before: float) -> None:
        """Forget the events that arrived before a time; they are read from the stream instead."""
        for held in self.logs:
            while (oldest := held.ring.oldest) and oldest.time < before and oldest is not held.running:
                held.ring.drop()
            held.history.clear()
            held.snapshots.expire(math.inf)

    def statistics(self) -> TenantStatistics:
        ring, head = self.log.ring.statistics(), sequence_of(self.log.head)
        lags = [max(0, head - sequence_of(flow.main.place)) for flow in self.flows if flow.main]
        return TenantStatistics(
            connections=len(self.flows),
            behind=len(lags),
            lag_sum=sum(lags),
            lag_max=max(lags, default=0),
            selections=len(self.log.selections),
            filters=len(self.log.filters),
            held=self.log.lanes.held(),
            ring_events=ring.events,
            ring_bytes=ring.size,
            restarts=self.restarts,
        )
