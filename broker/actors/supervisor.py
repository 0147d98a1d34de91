"""The supervisor: passes what arrives from NATS to the tenants, and admits clients."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.actors.boundary import Boundary, each, kept
from broker.actors.budgets import Budgets
from broker.actors.canary import Canary
from broker.actors.connection import AUTHENTICATE, PING, Connection
from broker.actors.deletions import Deletions
from broker.actors.following import Followers
from broker.actors.inbox import Hole
from broker.actors.intake import KEPT_SECONDS, Intake
from broker.actors.observer import Observer
from broker.actors.places import Places
from broker.actors.posting import Posting
from broker.actors.services import Services
from broker.actors.tenants import Tenants
from broker.actors.usage import Sharing
from broker.actors.wheel import Wheel
from broker.beats import beat
from broker.errors import Unavailable
from broker.eventlog.starts import Starts
from broker.features.audit import Audit
from broker.features.calls import Calls
from broker.features.closes import Closes
from broker.features.control import Control
from broker.features.deadletter import DeadLetters
from broker.features.durable.cursors import Cursors
from broker.features.durable.feature import Durables
from broker.features.history.feature import Histories
from broker.features.history.stream import Sources as Pages
from broker.features.port import Ended
from broker.features.presence.feature import Presence
from broker.features.publishing import Publishing
from broker.features.state import rules
from broker.features.state.changing import Changing
from broker.features.state.reading import Reading
from broker.features.subscriptions.feature import Subscriptions
from broker.features.subscriptions.joining import Sources
from broker.features.subscriptions.live import LiveSubjects
from broker.flow.client import Notice
from broker.limits import CONNECTIONS, hold
from broker.metrics.meters import Meters
from broker.session.requests import table
from broker.signals import Signal
from broker.turns import Turn
from broker.wire.messages import Source
from broker.wire.positions import Position
from broker.wire.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from broker.actors.intake import Address
    from broker.actors.posting import Answer
    from broker.actors.tenant import Tenant
    from broker.actors.transport import Hello, Transport
    from broker.auth.tokens import Verifier
    from broker.bus.base import Bus, Record, StreamState
    from broker.config import Config
    from broker.features.port import Feature, Letter
    from broker.limits import Budget
    from broker.parts import Part
    from broker.subjects import Names
    from broker.tracing import Tracing

TIDY_SECONDS = 5.0
OF_RFC_6455 = range(1000, 1016)  # close codes, section 7.4.1 and the registry

log = structlog.get_logger(__name__)  # not found out for each client


class Admission:
    """A reserved place, held until the end of a `with`. Not a generator: each client takes one."""

    __slots__ = ("let_go",)

    def __init__(self, let_go: Callable[[], None]) -> None:
        self.let_go = let_go

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.let_go()


@attrs.define(eq=False, repr=False)
class Supervisor:
    """Owns the connections and the tenants. It is the sink of the bus.

    `run` does the background work; `serve` serves one client from its opening to its end.
    """

    config: Config
    bus: Bus
    names: Names
    verifier: Verifier
    alive: Callable[[], None] = lambda: None  # called while the process works, see `Canary`
    tracing: Tracing | None = None
    broker: str = attrs.Factory(lambda: secrets.token_hex(4))
    connections: dict[Connection, None] = attrs.Factory(dict)
    meters: Meters = attrs.Factory(Meters)
    empty: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)  # of `emptied`
    banned: Signal = attrs.Factory(Signal)  # set when bans have changed
    connected: bool = False
    draining: bool = False
    admitting: int = 0  # clients and requests with a reserved place
    canary: Canary = attrs.field(init=False)
    observer: Observer = attrs.field(init=False)
    intake: Intake = attrs.field(init=False)
    tenants: Tenants = attrs.field(init=False)
    deletions: Deletions = attrs.field(init=False)
    services: Services = attrs.field(init=False)
    live_subjects: LiveSubjects = attrs.field(init=False)
    audit: Audit = attrs.field(init=False)
    control: Control = attrs.field(init=False)
    durables: Durables = attrs.field(init=False)
    sharing: Sharing = attrs.field(init=False)
    reading: Reading | None = attrs.field(default=None, init=False)
    presence: Presence | None = attrs.field(default=None, init=False)
    letters: DeadLetters = attrs.field(init=False)
    ends: Closes = attrs.field(init=False)
    features: tuple[Feature, ...] = attrs.field(init=False)
    parts: tuple[Part, ...] = attrs.field(init=False)  # the features among them

    def __attrs_post_init__(self) -> None:
        config, bus, names = self.config, self.bus, self.names
        followers, budgets = Followers(), Budgets(config.limits)
        self.intake = Intake(names, config.limits.event_bytes, self.rejected)
        starts = Starts(
            bus,
            names,
            config.limits,
            self.intake.check,
            self.intake.between,
            look=lambda: self.deletions.look(),
            gone=lambda *stretch: self.intake.gone.between(*stretch),
            index=lambda: self.intake.index,
        )
        self.tenants = Tenants(
            config=config,
            bus=bus,
            names=names,
            intake=self.intake,
            meters=self.meters,
            starts=starts,
            look=lambda: self.deletions.look(),
            tracing=self.tracing,
            followers=followers,
        )
        self.live_subjects = LiveSubjects(bus, names)
        self.deletions = Deletions(bus, self.intake, self.tenants)
        self.canary = Canary(bus, names, self.broker, self.alive, self.meters)
        self.features = self.make_features(starts, followers)
        self.observer = Observer(
            bus, names, self.meters, self.intake, lambda: self.config.metrics, self.control.read_again
        )
        self.services = Services(
            config=config,
            verifier=self.verifier,
            tenants=self.tenants,
            budgets=budgets,
            places=Places(budgets),
            features=self.features,
            table=table(
                [AUTHENTICATE, PING, *(each for feature in self.features for each in feature.requests())]
            ),
            wheel=Wheel(),
            meters=self.meters,
        )
        self.sharing = Sharing(bus, names, self.broker, budgets)
        self.parts = (
            *(self.services, self.intake, budgets, starts, self.tenants, self.live_subjects),
            *(*self.features, self.canary, self.sharing, self.deletions),
        )

    def make_features(self, starts: Starts, followers: Followers) -> tuple[Feature, ...]:
        """Return the features, one line each."""
        config, bus, names, intake = self.config, self.bus, self.names, self.intake
        cursors = Cursors(bus, config.limits.durables_per_user, config.stream.cursor_max_age)
        self.control = Control(bus, names, self.bans_changed)
        self.durables = Durables(cursors, lambda: Position(intake.incarnation, intake.head))
        self.audit = Audit(bus, config.audit, self.broker)
        self.letters = DeadLetters(bus, names, noticed=followers.refused)
        self.ends = Closes(config.audit.closes)
        sources = Sources(
            starts=starts,
            live=self.live_subjects,
            log_of=lambda name: self.tenants.get(name).log,
            advanced=self.tenants.advanced,
        )
        return (
            self.control,
            Subscriptions(sources, self.durables),
            Publishing(bus, names, lambda: intake.incarnation, self.tracing),
            Calls(bus, names, self.meters.calls, self.tracing),
            Histories(
                Pages(starts=starts, memory=intake, log_of=sources.log_of, advanced=sources.advanced),
                self.meters.pages,
            ),
            *self.documents(),
            *self.members(),
            self.durables,
            self.letters,
            self.ends,
            self.audit,
        )

    def documents(self) -> tuple[Feature, ...]:
        """Return the features of documents, where there are any."""
        config, intake = self.config, self.intake
        if not config.state.used:
            return ()
        keyed, documents = self.bus.keyed(config.state.name), rules.read(config.state)
        self.reading = reading = Reading(
            keyed, self.names, documents, config.limits, lambda: intake.incarnation
        )
        changing = Changing(
            bus=self.bus,
            keyed=keyed,
            names=self.names,
            rules=documents,
            incarnation=lambda: reading.view.stream or "",
            head=lambda: reading.view.head,
            limits=config.limits,
            meters=self.meters.changes,
            features=lambda: self.features,
        )
        reading.view.heard = changing.hear
        return (reading, changing)

    def members(self) -> tuple[Feature, ...]:
        """Return the feature of presence, where there is any."""
        config = self.config
        if not config.presence.enabled:
            return ()
        keyed = self.bus.keyed(config.presence.name)
        self.presence = Presence(keyed, self.names, self.broker, config.limits)
        return (self.presence,)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tenants and the background work, until cancelled."""
        async with trio.open_nursery() as nursery:
            self.tenants.nursery = self.services.nursery = nursery
            background = [
                *(part.run for part in self.parts),
                *(self.services.wheel.run, self.tidy_up, self.keep_out),
                *(self.observer.watch_loop, self.observer.watch_stream, self.observer.count_shares),
            ]
            for work in background:
                nursery.start_soon(kept, work.__qualname__, work)
            await nursery.start(self.feed)
            task_status.started()

    async def feed(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the bus. After a crash the tenants read from the stream what it had received."""
        statuses = iter([task_status])

        async def work() -> None:
            await self.bus.run(self, task_status=next(statuses, trio.TASK_STATUS_IGNORED))

        def crashed() -> None:
            if self.connected:
                self.interrupted()
            for tenant in self.tenants.running.values():
                tenant.inbox.lose()

        await kept("bus", work, crashed)

    async def reload(self, config: Config, verifier: Verifier) -> None:
        """Apply another configuration, and end the connections that it does not allow."""
        ours, theirs = self.config.auth, config.auth
        read_alike = (ours.type, ours.tenant_claim) == (theirs.type, theirs.tenant_claim)
        self.config = config
        self.verifier = self.services.verifier = verifier
        for part in self.parts:
            part.settings_changed(config)
        self.bans_changed()  # a tenant may be suspended now
        turn = Turn()
        for connection in list(self.connections):
            connection.settings_changed(verifier if read_alike else None)
            await turn.pass_on()

    # --- what arrives: the bus's sink ---------------------------------------------------------------

    async def reached(self) -> None:
        for part in self.parts:
            await part.reached()

    def restored(self, state: StreamState) -> None:
        known = self.intake.incarnation
        if known != state.incarnation:
            self.intake.begin(state.incarnation, state.first - 1)
            for tenant in self.tenants.running.values():
                tenant.inbox.renew()
        elif self.intake.head < state.first - 1:
            # Trimmed before anybody has read it: each connection notices, and reports a gap.
            self.intake.begin(state.incarnation, state.first - 1)
            for tenant in self.tenants.running.values():
                tenant.inbox.lose()
        self.deletions.note(state)
        self.connected = True
        each(*(partial(part.up, state) for part in self.parts), failed=part_failed)
        log.info("source_restored", first=state.first, last=state.last, incarnation=state.incarnation)
        if known:
            self.announce(Notice(Source(state="restored"), "source"))

    def stored(self, records: list[Record], head: int, times: Sequence[int]) -> None:
        intake = self.intake
        now = trio.current_time()
        if not records and not intake.recent:
            intake.begin_at(max(intake.floor, head))  # the feed begins here
        late = intake.gone.late(records)
        stored_at = {record[0]: time for record, time in zip(records, times, strict=True)}
        for address, record in self.hand_on(records, times[0] / 1e9 if times else None):
            if record[0] not in late:
                intake.remember(now, address.tenant, (address.channel, record), stored_at[record[0]])
        intake.forget(before=now - KEPT_SECONDS)
        before, intake.head = intake.head, head
        if intake.gone.reaches(before):
            for tenant in self.tenants.running.values():
                tenant.inbox.announce(Hole(Position(intake.incarnation, head)))
        self.meters.received["stored"] += len(records)
        self.tenants.advanced.unpark_all()

    def skipped(self, state: StreamState) -> None:
        self.deletions.note(state)

    def live(self, records: list[Record]) -> None:
        prefix = f"{self.names.own}."
        events: list[Record] = []
        for record in records:
            if record[1].startswith(prefix):
                self.own(record[1].removeprefix(prefix), record[2])
            else:
                events.append(record)
        for _ in self.hand_on(events, None):
            pass
        self.meters.received["live"] += len(events)

    def hand_on(self, records: list[Record], stored_at: float | None) -> Iterator[tuple[Address, Record]]:
        """Put each record that is an event into its tenants' inboxes and yield it; wake them at the end."""
        woken: set[Tenant] = set()
        now = trio.current_time()
        if self.tracing is not None:
            records = self.tracing.received(records, self.intake.incarnation)
        for record in records:
            address = self.intake.address(record[1])
            admitted = self.intake.admit(address, record)
            if record[0]:
                self.intake.gone.saw(record, address if admitted else None, now)
            if admitted:
                for tenant in self.tenants.audience(address.tenant):
                    tenant.inbox.put(address.channel, record)
                    woken.add(tenant)
                yield address, record
        for tenant in woken:
            tenant.inbox.wake(stored_at)

    def own(self, channel: str, body: bytes) -> None:
        """Pass on what brokers send to themselves and to each other."""
        hearing = [part for part in self.parts if part.channel and channel.startswith(part.channel)]
        each(*(partial(part.heard, channel, body) for part in hearing), failed=part_failed)

    def rejected(self, letter: Letter) -> None:
        each(*(partial(feature.rejected, letter) for feature in self.features), failed=part_failed)

    def live_lost(self) -> None:
        self.meters.live_losses += 1
        log.warning("live_events_lost")
        self.announce(Notice(None, "lag"))

    def interrupted(self) -> None:
        self.connected = False
        self.meters.interruptions += 1
        each(*(part.down for part in self.parts), failed=part_failed)
        log.warning("source_interrupted")
        self.announce(Notice(Source(state="interrupted"), None))

    def announce(self, notice: Notice) -> None:
        """Send a notice to all clients: through the tenants, in its turn among the events."""
        for tenant in self.tenants.running.values():
            tenant.inbox.announce(notice)
        for connection in self.connections:
            if connection.tenant is None:  # not in a tenant yet: few, and for a short time
                with Boundary(connection):
                    connection.heed_notice(notice)

    # --- connections ---------------------------------------------------------------------------------

    def bans_changed(self) -> None:
        self.banned.set()

    async def keep_out(self) -> None:
        """After each change of the bans, end the connections that they concern."""
        while True:
            await self.banned.wait()
            turn = Turn()
            for connection in list(self.connections):
                connection.keep_out()
                await turn.pass_on()

    def admission(self, peer: str) -> Admission:
        """Reserve a place for a client from "HOST:PORT" until `serve` takes it, without a checkpoint between.

        It may also enclose a single request; a drain waits for it. Raises `Unavailable`, `TooManyConnections`
        and `RateLimited` when no client can be admitted.
        """
        if self.draining:
            raise Unavailable("this broker is about to stop", retry_after=1.0)
        budgets = self.services.budgets.admit(peer, trio.current_time())
        self.admitting += 1
        return Admission(partial(self.let_go, budgets))

    def let_go(self, budgets: tuple[Budget, ...]) -> None:
        """Give back a place that was reserved."""
        self.services.budgets.let_go(budgets)
        self.admitting -= 1
        self.look_empty()

    def serve(self, transport: Transport, hello: Hello) -> Awaitable[None]:
        """Serve one client until it is gone. Called within its `admission`, with no checkpoint in between."""
        connection = Connection(
            id=secrets.token_hex(8),
            transport=transport,
            services=self.services,
            peer=hello.peer,
            token=hello.token,
            asked=hello.tenant,
            certificate=hello.certificate,
            response=hello.response,
            ended=self.ended,
        )
        self.connections[connection] = None
        self.meters.opened[transport.name] += 1
        return connection.run()

    def ended(self, connection: Connection) -> None:
        each(
            lambda: self.connections.pop(connection, None),
            lambda: hold(connection.session.budgets, CONNECTIONS, -1),
            lambda: self.note_end(connection),
            self.look_empty,
            failed=connection.note_crash,
        )

    def note_end(self, connection: Connection) -> None:
        # A client may send any code, and would otherwise create metric labels of its choice.
        code = connection.close_code
        known = connection.ended_by != "client" or code in OF_RFC_6455
        self.meters.closed[connection.ended_by, str(int(code)) if known else "other"] += 1
        ended = end_of(connection, trio.current_time(), time.time())
        log.debug("connection_ended", code=ended.code, reason=ended.reason, by=ended.by, **connection.who())
        each(*(partial(feature.ended, ended) for feature in self.features), failed=part_failed)

    def look_empty(self) -> None:
        if not (self.connections or self.admitting):
            self.empty.unpark_all()

    async def emptied(self) -> None:
        """Wait until no connection and no request is left."""
        while self.connections or self.admitting:
            await self.empty.park()

    async def post(self, message: bytes, *, token: str, tenant: str | None, peer: str) -> Answer:
        """Return the reply to a message that was sent without a connection, within an `admission`."""
        return await Posting(self.services, peer).answer(message, token=token, tenant=tenant)

    # --- housekeeping -------------------------------------------------------------------------------

    async def tidy_up(self) -> None:
        while True:
            await beat(TIDY_SECONDS)
            now = trio.current_time()
            self.intake.forget(before=now - KEPT_SECONDS)
            self.tenants.tidy(now)
            self.services.budgets.tidy(now)
            try:
                await self.live_subjects.drop_unless(self.tenants.wants_live)
            except Unavailable:
                log.debug("unsubscribe_postponed")  # the next round retries

    def not_ready(self) -> str | None:
        """Return why `/readyz` fails; None while an event can travel."""
        if self.draining:
            return "the broker is about to stop"
        if not self.connected:
            return f"NATS is out of reach: {self.canary.fault}"
        return self.services.trouble() or self.canary.trouble()


def part_failed(error: Exception) -> None:
    """Record that a part could not take what it was told; the others are told all the same."""
    log.error("part_failed", exc_info=error)


def end_of(connection: Connection, now: float, unix_now: float) -> Ended:
    """Return the record of a connection's end. Its code and reason may be the client's own."""
    seconds = now - connection.session.began
    who = connection.who()
    return Ended(
        connection=connection.id,
        tenant=who["tenant"],
        user=who["user"],
        peer=connection.peer,
        transport=connection.transport.name,
        opened=rfc3339(unix_now - seconds),
        ended=rfc3339(unix_now),
        seconds=round(seconds, 3),
        code=int(connection.close_code),
        by=connection.ended_by,
        reason=connection.close_reason,
        messages=connection.received,
        position=connection.last,
    )
