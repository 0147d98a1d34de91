"""The supervisor: hands what arrives from NATS to the tenants, and holds what all of them share."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.actors.canary import Canary
from broker.actors.connection import Connection
from broker.actors.intake import Intake
from broker.actors.live import LiveSubjects
from broker.actors.tenant import Feed, Tenant
from broker.actors.wheel import Wheel
from broker.errors import TooManyConnections, Unavailable
from broker.features.deadletter import DeadLetters
from broker.features.replay import History
from broker.features.starts import Starts
from broker.limits import Quota, TokenBucket
from broker.metrics import Statistics
from broker.wire.messages import Gap, Source, named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.actors.fanout import Fanout
    from broker.actors.transport import Hello, Transport
    from broker.auth.tokens import Verifier
    from broker.bus.base import Bus, Record, StreamState
    from broker.config import Config

TIDY_SECONDS = 5.0
IDLE_SECONDS = 60.0  # a tenant without clients is kept so long: they may be reconnecting

log = structlog.get_logger()


@attrs.define(eq=False)
class Supervisor:
    """Owns the tenants and the connections. It is the bus's sink.

    `run` keeps the background work going; `serve` is one client from its request to its end.
    """

    config: Config
    bus: Bus
    names: subjects.Names
    verifier: Verifier
    broker: str = attrs.Factory(lambda: secrets.token_hex(4))
    tenants: dict[str, Tenant] = attrs.Factory(dict)
    connections: dict[Connection, None] = attrs.Factory(dict)
    user_buckets: dict[tuple[str, str], TokenBucket] = attrs.Factory(dict)
    closes: Counter[int] = attrs.Factory(Counter)
    wheel: Wheel = attrs.Factory(Wheel)
    advanced: trio.lowlevel.ParkingLot = attrs.Factory(
        trio.lowlevel.ParkingLot
    )  # unparked when a tenant has come further
    empty: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)  # of `emptied`
    head: int = 0
    connected: bool = False
    draining: bool = False
    stored_events: int = 0
    live_events: int = 0
    live_losses: int = 0
    tenant_restarts: int = 0
    letters: DeadLetters = attrs.field(init=False)
    canary: Canary = attrs.field(init=False)
    intake: Intake = attrs.field(init=False)
    live_subjects: LiveSubjects = attrs.field(init=False)
    starts: Starts = attrs.field(init=False)
    users: Quota = attrs.field(init=False)
    gate: trio.CapacityLimiter = attrs.field(init=False)
    nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        limits, stream = self.config.limits, self.config.stream
        self.letters = DeadLetters(self.bus, self.names)
        self.canary = Canary(self.bus, self.names, self.broker, stream.max_age)
        self.intake = Intake(self.names, limits.event_bytes, self.letters, self.canary)
        self.live_subjects = LiveSubjects(self.bus)
        self.starts = Starts(
            self.bus, self.names, limits, self.intake.check, thinned=stream.max_msgs_per_subject > 0
        )
        self.users = Quota(limits.connections_per_user)
        self.gate = trio.CapacityLimiter(limits.catch_ups)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The tenants and the background work, until cancelled."""
        async with trio.open_nursery() as self.nursery:
            for part in (self.wheel.run, self.canary.run, self.letters.run, self.tidy_up):
                self.nursery.start_soon(part)
            await self.nursery.start(self.bus.run, self)
            task_status.started()

    # --- what arrives: the bus's sink ---------------------------------------------------------------

    def restored(self, state: StreamState) -> None:
        known = self.intake.incarnation
        if known != state.incarnation:
            self.head = state.first - 1
            self.intake.begin(state.incarnation, self.head)
            self.canary.anchored = None
            for tenant in self.tenants.values():
                tenant.inbox.renew()
        elif self.head < state.first - 1:
            # Cut off before anybody has read it: each connection will find that out, and say so.
            self.head = state.first - 1
            self.intake.begin(state.incarnation, self.head)
            for tenant in self.tenants.values():
                tenant.inbox.lose()
        self.connected = True
        log.info("source_restored", first=state.first, last=state.last, incarnation=state.incarnation)
        if known:
            for connection in self.connections:
                connection.tell(Source(state="restored"))
            self.tell_live("source")

    def stored(self, records: list[Record], head: int) -> None:
        intake, tenants = self.intake, self.tenants
        now = trio.current_time()
        woken: set[Tenant] = set()
        if not records and not intake.recent:
            intake.floor = max(intake.floor, head)  # the feed begins here
        for record in records:
            address = intake.address(record[1])
            if not intake.admit(address, record):
                continue
            intake.remember(now, address.tenant, (address.channel, record))
            for tenant in self.audience(address.tenant, tenants):
                tenant.inbox.put(address.channel, record)
                woken.add(tenant)
        intake.forget(now)
        self.head = head
        self.stored_events += len(records)
        for tenant in woken:
            tenant.inbox.arrived.set()
        self.advanced.unpark_all()

    def live(self, records: list[Record]) -> None:
        woken: set[Tenant] = set()
        for record in records:
            address = self.intake.address(record[1])
            if not self.intake.admit(address, record):
                continue
            for tenant in self.audience(address.tenant, self.tenants):
                tenant.inbox.put(address.channel, record)
                woken.add(tenant)
        self.live_events += len(records)
        for tenant in woken:
            tenant.inbox.arrived.set()

    @staticmethod
    def audience(name: str, tenants: dict[str, Tenant]) -> Iterable[Tenant]:
        if name == subjects.BROADCAST:
            return tenants.values()
        tenant = tenants.get(name)
        return (tenant,) if tenant else ()

    def live_lost(self) -> None:
        self.live_losses += 1
        log.warning("live_events_lost")
        self.tell_live("lag")

    def interrupted(self) -> None:
        self.connected = False
        log.warning("source_interrupted")
        for connection in self.connections:
            connection.tell(Source(state="interrupted"))

    def tell_live(self, reason: str) -> None:
        """Says to each live subscription that something of it may be missing."""
        for connection in self.connections:
            if live := connection.outlet.live:
                channel = named(topic.pattern for topic in live)
                connection.tell(Gap(channel=channel, reason="source" if reason == "source" else "lag"))

    # --- tenants and connections --------------------------------------------------------------------

    def tenant(self, name: str) -> Tenant:
        """The tenant's actor, started when there is none. Raises `Unavailable` before NATS was reached."""
        found = self.tenants.get(name)
        if found is None:
            if not self.intake.incarnation:
                raise Unavailable("the broker has not reached NATS yet", retry_after=1.0)
            found = self.tenants[name] = Tenant(
                name=name,
                bounds=self.config.ring,
                outbound_bytes=self.config.limits.outbound_bytes,
                feed=Feed(
                    head=lambda: self.head,
                    incarnation=lambda: self.intake.incarnation,
                    recent=self.intake.recent_of,
                ),
                make_history=self.history,
                advanced=self.advanced,
            )
            self.nursery.start_soon(found.run)
        found.used = trio.current_time()
        return found

    def history(self, name: str, fanout: Fanout) -> History:
        return History(
            tenant=name,
            bus=self.bus,
            names=self.names,
            incarnation=fanout.incarnation,
            gate=self.gate,
            check=self.intake.check,
            encode=lambda checked: fanout.encode(checked, first=0, base=0),
            clock=trio.current_time,
        )

    def live_filters(self, tenant: str) -> list[str]:
        """The subjects that a live subscriber of the tenant needs to be listened to."""
        return [f"{self.names.live}.{name}.>" for name in (tenant, subjects.BROADCAST)]

    def refusal(self) -> Unavailable | None:
        """Why no further connection is taken; None when one is."""
        if self.draining:
            return Unavailable("this broker is about to stop", retry_after=1.0)
        if len(self.connections) >= self.config.limits.connections:
            return Unavailable("this broker has all the connections it may have", retry_after=5.0)
        return None

    def claim(self, tenant: str, user: str) -> TokenBucket:
        """Counts a connection of a user; the bucket that all its connections share.

        Raises `TooManyConnections`. `release` gives it back.
        """
        if not self.users.acquire((tenant, user)):
            raise TooManyConnections(
                f"{user}: has {self.users.limit} connections already; close one before the next",
                retry_after=5.0,
            )
        bucket = self.user_buckets.get((tenant, user))
        if bucket is None:
            limits = self.config.limits
            bucket = self.user_buckets[tenant, user] = TokenBucket(
                rate=limits.messages_per_minute / 60,
                burst=limits.messages_burst,
                now=trio.current_time(),
            )
        return bucket

    async def serve(self, transport: Transport, hello: Hello) -> None:
        """One client, until it is gone."""
        connection = Connection(id=secrets.token_hex(8), transport=transport, hello=hello, services=self)
        self.connections[connection] = None
        try:
            await connection.run()
        finally:
            del self.connections[connection]
            self.closes[connection.close_code] += 1
            if not self.connections:
                self.empty.unpark_all()

    async def emptied(self) -> None:
        """Waits until no connection is left."""
        while self.connections:
            await self.empty.park()

    # --- housekeeping -------------------------------------------------------------------------------

    async def tidy_up(self) -> None:
        while True:
            await trio.sleep(TIDY_SECONDS)
            now = trio.current_time()
            self.intake.forget(now)
            for name, tenant in list(self.tenants.items()):
                tenant.fanout.ring.expire(now)
                tenant.history.expire(now)
                if tenant.fanout.outlets:
                    tenant.used = now
                elif now - tenant.used > IDLE_SECONDS:
                    self.reap(name, tenant)
            self.shrink_rings()
            for key, bucket in list(self.user_buckets.items()):
                if bucket.full(now) and not self.users.held[key]:
                    del self.user_buckets[key]
            try:
                await self.live_subjects.drop_unless(self.wanted_live)
            except Unavailable:
                log.debug("unsubscribe_postponed")  # the next round tries again

    def reap(self, name: str, tenant: Tenant) -> None:
        del self.tenants[name]
        self.tenant_restarts += tenant.restarts
        tenant.scope.cancel()
        log.debug("tenant_reaped", tenant=name)

    def shrink_rings(self) -> None:
        """Keeps all rings together within their bound; the least recently used give first."""
        total = sum(tenant.fanout.ring.size for tenant in self.tenants.values())
        for tenant in sorted(self.tenants.values(), key=lambda each: each.used):
            ring = tenant.fanout.ring
            while total > self.config.ring.total_bytes and ring.events and not tenant.fanout.running:
                size = ring.size
                ring.drop()
                total -= size - ring.size

    def wanted_live(self, subject: str) -> bool:
        tenants = [
            name for name, tenant in self.tenants.items() if any(o.live for o in tenant.fanout.outlets)
        ]
        return any(subject in self.live_filters(name) for name in tenants)

    def not_ready(self) -> str | None:
        """Why `/readyz` says no; None while an event can travel through."""
        if self.draining:
            return "the broker is about to stop"
        if not self.connected:
            return "NATS is out of reach"
        return self.canary.silence()

    def statistics(self) -> Statistics:
        tenants = [tenant.statistics() for tenant in self.tenants.values()]
        return Statistics(
            connections=len(self.connections),
            tenants=len(tenants),
            behind=sum(each.behind for each in tenants),
            ring_events=sum(each.ring_events for each in tenants),
            ring_bytes=sum(each.ring_bytes for each in tenants),
            stored_events=self.stored_events,
            live_events=self.live_events,
            live_losses=self.live_losses,
            tenant_restarts=self.tenant_restarts + sum(each.restarts for each in tenants),
            dead_letters=dict(self.letters.counts),
            closes=dict(self.closes),
            ready=self.not_ready() is None,
        )
