"""The tenants that have clients: one actor each, started on demand and stopped when idle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.actors.following import Followers
from broker.actors.tenant import Tenant
from broker.errors import Unavailable
from broker.eventlog.gate import FairGate
from broker.eventlog.history import History
from broker.eventlog.places import sequence_of
from broker.eventlog.snapshots import KEPT_SECONDS, Holdings, Snapshots
from broker.metrics.tenants import OTHER, Ledger
from broker.parts import Part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from broker.actors.intake import Intake
    from broker.bus.base import Bus, StreamState
    from broker.config import Config
    from broker.eventlog.log import EventLog
    from broker.eventlog.starts import Starts
    from broker.metrics.meters import Meters
    from broker.tracing import Tracing

IDLE_SECONDS = 60.0  # a tenant without clients is kept this long, since they may be reconnecting

log = structlog.get_logger()


@attrs.define(eq=False, repr=False, kw_only=True)
class Tenants(Part):
    """Starts, finds and stops tenants. `advanced` is unparked whenever one of them has advanced."""

    config: Config
    bus: Bus
    names: subjects.Names
    intake: Intake
    meters: Meters
    starts: Starts
    look: Callable[[], Awaitable[StreamState]]  # inspects the stream and forgets what was deleted
    tracing: Tracing | None = None
    nursery: trio.Nursery = attrs.field(init=False)
    running: dict[str, Tenant] = attrs.Factory(dict)
    advanced: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)
    followers: Followers = attrs.Factory(Followers)
    gate: FairGate = attrs.field(init=False)
    holdings: Holdings = attrs.field(init=False)
    restarts: int = 0  # of tenants that are gone
    ledger: Ledger = attrs.Factory(Ledger)

    def __attrs_post_init__(self) -> None:
        self.gate = FairGate(self.config.limits.catch_ups)
        self.holdings = Holdings(self.config.limits.snapshot_memory_bytes)

    def get(self, name: str) -> Tenant:
        """Return the tenant's actor, started if there is none.

        Raises `Unavailable` before NATS is reached, and for a while after the tenant has crashed too often.
        """
        now = trio.current_time()
        found = self.running.get(name)
        if found and found.failed_until is not None:
            if now < found.failed_until:
                raise Unavailable(
                    "this tenant's actor keeps crashing and is paused; other tenants are served",
                    retry_after=found.failed_until - now,
                )
            self.restarts += found.restarts
            self.ledger.book(OTHER, found.traffic)
            found = None
        if found is None:
            if not self.intake.incarnation:
                raise Unavailable("the broker has not reached NATS yet", retry_after=1.0)
            found = self.running[name] = Tenant(
                name=name,
                bounds=self.config.ring,
                outbound_bytes=self.config.limits.outbound_bytes,
                paced_channels=self.config.limits.paced_channels,
                intake=self.intake,
                make_history=self.history,
                make_snapshots=self.snapshots,
                followers=self.followers,
                advanced=self.advanced,
                meters=self.meters,
                tracing=self.tracing,
            )
            self.nursery.start_soon(found.run)
        found.used = now
        return found

    def audience(self, name: str) -> Iterable[Tenant]:
        """Return the running tenants that receive what is published under this name."""
        if name == subjects.BROADCAST:
            return self.running.values()
        tenant = self.running.get(name)
        return (tenant,) if tenant else ()

    def settings_changed(self, config: Config) -> None:
        self.gate.widen(config.limits.catch_ups - self.config.limits.catch_ups)
        self.holdings.limit = config.limits.snapshot_memory_bytes
        self.config = config
        for tenant in self.running.values():
            tenant.outbound_bytes = config.limits.outbound_bytes
            tenant.paced_channels = tenant.log.lanes.most = config.limits.paced_channels

    def history(self, name: str, log: EventLog) -> History:
        return History(
            tenant=name,
            bus=self.bus,
            names=self.names,
            incarnation=log.incarnation,
            gate=self.gate,
            look=self.look,
            check=self.intake.check,
            remembered=partial(self.intake.between, name),
            encode=partial(log.encode, base=0),
            clock=trio.current_time,
            memory=lambda: self.intake.floor if self.intake.incarnation == log.incarnation else None,
            below=lambda: sequence_of(log.ring.floor),
        )

    def snapshots(self, name: str, log: EventLog) -> Snapshots:
        return Snapshots(
            tenant=name,
            holdings=self.holdings,
            ring=log.ring,
            matcher=log,
            read=self.starts.snapshot,
            encode=partial(log.encode, base=0),
            deleted=lambda sequence: self.intake.gone.has(sequence),
            remembered=partial(self.intake.between, name),
            memory=lambda: self.intake.floor,
            clock=trio.current_time,
        )

    def wants_live(self, subject: str) -> bool:
        """Return whether a connection has, or is about to have, a subscription that needs this subject."""
        name, _ = self.names.split(subject)
        return self.followers.need(name, live=True) or any(
            tenant.needs_unstored() for tenant in self.audience(name)
        )

    def tidy(self, now: float) -> None:
        """Drop what is old, and stop idle tenants."""
        for name, tenant in list(self.running.items()):
            tenant.log.ring.expire(now)
            tenant.log.history.expire(now)
            tenant.log.snapshots.expire(now - KEPT_SECONDS)
            if tenant.flows or self.followers.need(name, live=False):
                tenant.used = now
            elif now - tenant.used > IDLE_SECONDS:
                del self.running[name]
                self.ledger.book(OTHER, tenant.traffic)
                self.restarts += tenant.restarts
                tenant.scope.cancel()
                log.debug("tenant_reaped", tenant=name)
        self.shrink_rings()

    def shrink_rings(self) -> None:
        """Keep the total size of all rings below the limit; the least recently used lose events first."""
        total = sum(tenant.log.ring.size for tenant in self.running.values())
        for tenant in sorted(self.running.values(), key=lambda each: each.used):
            ring = tenant.log.ring
            while total > self.config.ring.total_bytes and ring.events and not tenant.log.running:
                size = ring.size
                ring.drop()
                total -= size - ring.size
