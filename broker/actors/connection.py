"""The actor of one client: a task that reads, and a task that sends what the link did not accept at once.

`session` decides what a message means, the features carry it out, and `flow` decides what is sent next.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from msgspec import UNSET

from broker import limits
from broker.actors.boundary import Boundary, each
from broker.actors.pacing import Pace
from broker.actors.stretch import before_waiting
from broker.actors.tenant import REST_SECONDS
from broker.actors.transport import Alive, Closed, Control, LinkLost, Resting, Text
from broker.errors import BrokerError, CloseCode, TokenInvalid, TokenRevoked, Unavailable
from broker.eventlog.places import sequence_of
from broker.flow.client import NOBODY
from broker.flow.flow import Flow
from broker.flow.sending import Sending
from broker.limits import DELIVERED
from broker.session.requests import Call, Close, Reply, Request, as_it_is
from broker.session.session import Session, to_message
from broker.wire import codec, messages, traces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.actors.services import Services
    from broker.actors.tenant import Tenant
    from broker.actors.transport import Inbound, Transport
    from broker.auth.tokens import Verifier
    from broker.config import Limits
    from broker.flow.client import Notice, Who
    from broker.limits import Budget
    from broker.permissions import Principal
    from broker.session.requests import Caller

PROTOCOL = "broker.v1"
STOPPING = "the broker is stopping; reconnect"
FLUSH_SECONDS = 2.0  # for unsent data when a connection ends
IN_FLIGHT_RETRY_SECONDS = 1.0  # when an answer will come is unknown
REPLIES_HELD = 16  # with more unsent replies, reading from the client pauses

log = structlog.get_logger(__name__)  # not found out for each client


async def authenticate(caller: Caller, message: messages.Authenticate, message_id: str | None) -> None:
    await caller.authenticate(message, message_id)


async def pong(caller: Caller, _: messages.Ping, __: str | None) -> messages.Pong:
    return messages.Pong(position=caller.position() or UNSET)


AUTHENTICATE = Request(
    message=messages.Authenticate,
    check=as_it_is,
    perform=authenticate,
    replies=(messages.Authenticated,),
    unasked=True,
    open=True,
)
PING = Request(message=messages.Ping, check=as_it_is, perform=pong, replies=(messages.Pong,), open=True)


@attrs.define(eq=False, repr=False)
class Connection:
    """One client. A crash in here ends this connection alone: no method that others call raises.

    `peer`, `token`, `asked` (the tenant requested) and `certificate` (the verified name in the client's
    certificate) are from the request that opened it; `response` is the answer to it, sent ahead of the first
    message. The cost of an idle client is decided here and on the way to its socket: no frame and no value
    beyond the necessary ones stays alive while its task waits.
    """

    id: str
    transport: Transport
    services: Services
    peer: str
    token: str | None  # until it has been verified
    asked: str | None
    ended: Callable[[Connection], None]  # called once, at the end
    certificate: str | None = None
    response: bytes = b""  # until it has been sent
    session: Session = attrs.field(init=False)
    flow: Flow = attrs.field(init=False)
    tenant: Tenant | None = None
    pace: Pace | None = None  # of sends, where a rate limits them
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)  # of the reading task
    sender: Sending | None = None  # while there is something to send
    drained: trio.Event | None = None  # set when the replies that held up reading are gone
    close_code: int = 1006
    close_reason: str = ""
    ended_by: str = "link"
    closing: bool = False  # it has left its tenant, and nothing further is sent
    received: int = 0  # messages from the client
    last: str | None = None  # the live position at its end
    busy: bool = False  # a message from the client is being processed
    dismissed: CloseCode | None = None  # end it with this code after that, and after `waiting`
    waiting: set[trio.CancelScope] | None = None  # requests beside the reading task; created on first use
    lost: bool = False  # nothing can be sent any more
    slot: int | None = None  # the wheel's
    pinged: float | None = None  # when the heartbeat without an answer yet was sent
    heard: float = 0.0  # when the last heartbeat was answered
    late: bool = False  # the answer to one is late
    progress: float = 0.0  # when the link last accepted pending data
    spoke: float = 0.0  # when the client last sent anything
    resting: bool = False  # it has given up its place among its user's connections

    def __attrs_post_init__(self) -> None:
        now = self.heard = self.spoke = trio.current_time()
        config = self.services.config
        budgets = self.services.budgets
        transport = self.transport
        self.flow = Flow(
            send=transport.send_nowait,
            client=self,
            whole=not transport.partial_sends,
            framing=transport.framing,
        )
        self.session = Session(
            config.limits,
            now,
            config.auth.expiring_seconds,
            self.services.table,
            standing=self.flow,
            hits=budgets.hits,
        )
        self.spend_from(budgets.arrive(self.peer))

    @property
    def limits(self) -> Limits:
        return self.services.config.limits

    async def run(self) -> None:
        """Serve the client from the opening to the end of the link."""
        try:
            with Boundary(self), self.scope:
                await self.begin()
                while not self.closing:
                    await self.heed(await self.transport.receive())
            self.retire()
            with Boundary(self):
                await self.say_goodbye()
        finally:
            self.lost = True
            if self.sender:
                self.sender.scope.cancel()
            self.flow.client = NOBODY  # breaks a reference cycle, which only a full collection would free
            each(  # the first two again, in case they have failed
                self.leave_tenant,
                partial(self.services.wheel.cancel, self),
                self.transport.abort,
                partial(self.ended, self),
                failed=self.note_crash,
            )

    def spend_from(self, budgets: tuple[Budget, ...]) -> None:
        """Use these budgets from now on."""
        self.session.budgets = budgets
        paced = tuple(each for each in budgets if DELIVERED in each.bounds.rates)
        if paced:
            self.pace = self.pace or Pace(self.transport, paced, self.services.budgets.count)
            self.pace.budgets = paced
            self.flow.send = self.pace.send_nowait
        elif self.pace:
            self.pace.lift()
            self.pace, self.flow.send = None, self.transport.send_nowait

    async def say_goodbye(self) -> None:
        """Send what is unsent, and let the client close first."""
        if self.lost:
            return
        with trio.move_on_after(FLUSH_SECONDS) as flushing:
            while self.sender and not self.lost:
                self.drained = trio.Event()
                await self.drained.wait()
        if not (flushing.cancelled_caught or self.lost):
            await self.transport.linger()

    def link_lost(self) -> None:
        self.lost = True
        self.scope.cancel()

    def crashed(self, error: Exception) -> None:
        """End the connection at once and without a message: whatever sends one may be what has failed."""
        if isinstance(error, LinkLost):
            self.link_lost()
            return
        self.note_crash(error)
        if not self.closing:
            self.close_code, self.close_reason, self.ended_by = (
                CloseCode.INTERNAL_ERROR,
                "internal error",
                "broker",
            )
        self.lost = True
        self.retire()
        self.scope.cancel()
        if self.sender:
            self.sender.scope.cancel()
        each(self.transport.abort, failed=self.note_crash)

    def note_crash(self, error: Exception) -> None:
        log.error("connection_crashed", exc_info=error, **self.who())

    def note_refusal(self, *, code: str, message: str | None, channel: str | None = None) -> None:
        """Tell the features what the client was refused, and why."""
        for feature in self.services.features:
            feature.refused(self.who(), code=code, message=message, channel=channel)

    def who(self) -> Who:
        principal = self.session.principal
        return {
            "connection": self.id,
            "peer": self.peer,
            "tenant": principal.tenant if principal else None,
            "user": principal.user if principal else None,
        }

    # --- what the client says -----------------------------------------------------------------------

    async def begin(self) -> None:
        """Send all that the opening leads to in one write, up to the first wait."""
        self.flow.hold()
        await before_waiting(self.open(), self.opened)

    def opened(self) -> None:
        with Boundary(self):  # which nothing may leave: the task may be about to wait
            self.flow.release()
            if self.slot is None and not self.closing:  # else that is done, or over
                self.services.wheel.schedule(self, self.on_timer(trio.current_time()))

    async def open(self) -> None:
        if self.response:
            self.flow.push(self.response)
            self.response = b""
        self.tell(self.greeting())
        token, self.token = self.token, None
        if token:
            await self.attempt(Call(AUTHENTICATE, messages.Authenticate(token=token), None))

    async def heed(self, inbound: Inbound) -> None:
        """Process one input."""
        await trio.lowlevel.checkpoint_if_cancelled()  # ignore what arrived while the connection was closing
        if not isinstance(inbound, Resting):
            self.spoke = trio.current_time()
        match inbound:
            case Text(data=data):
                self.busy = True
                self.received += 1
                if not self.resting or await self.come_back(data):
                    await self.receive(data)
                self.busy = False
                self.leave_if_dismissed()
            case Control(data=data):
                self.flow.push(data)
            case Alive():
                self.heard, self.pinged = trio.current_time(), None
                if self.late:
                    self.note_silence(late=False)
            case Resting():
                self.services.places.rest(self)
            case Closed() as closed:
                self.leave(closed)
        await self.let_drain()

    async def let_drain(self) -> None:
        """Pause reading from a client that does not read its replies."""
        while len(self.flow.rest or ()) > REPLIES_HELD and self.sender:
            self.drained = trio.Event()
            await self.drained.wait()

    def greeting(self) -> messages.Established:
        return messages.Established(
            connection_id=self.id,
            protocol=PROTOCOL,
            features=[traces.PARENT, *self.services.feature_names],
            heartbeat_seconds=self.limits.heartbeat_seconds,
            limits={
                **self.services.budgets.shown,
                "duplicate_window_seconds": self.services.duplicate_window,
            },
        )

    async def receive(self, data: bytes) -> None:
        """Process a message of the client."""
        for effect in self.session.receive(data, trio.current_time()):
            if not isinstance(effect, Call):
                self.refuse(effect)
            elif effect.request.waits:
                self.begin_waiting(effect)
            else:
                await self.attempt(effect)

    def begin_waiting(self, call: Call) -> None:
        """Carry out a wish beside the reading task, if not too many are."""
        waiting = self.waiting = self.waiting or set()
        try:
            if self.dismissed is not None:
                raise Unavailable(STOPPING, retry_after=1.0)
            if len(waiting) >= self.limits.requests_in_flight:
                excess = limits.Excess(limits.CONNECTION, limits.IN_FLIGHT, IN_FLIGHT_RETRY_SECONDS)
                raise self.session.limited(excess)
        except BrokerError as error:
            self.fail(call, error)
            return
        scope = trio.CancelScope()
        waiting.add(scope)
        self.services.nursery.start_soon(self.wait, call, scope)

    async def wait(self, call: Call, scope: trio.CancelScope) -> None:
        with Boundary(self):
            try:
                with scope:
                    await self.attempt(call)
            finally:
                if self.waiting:
                    self.waiting.discard(scope)
                self.leave_if_dismissed()

    async def attempt(self, call: Call) -> None:
        """Carry out a wish. If that fails, the client is told."""
        try:
            reply = await call.request.perform(self, call.wish, call.message_id)
        except BrokerError as error:
            self.fail(call, error)
        else:
            if reply is not None:
                self.tell(reply, call.message_id)

    def fail(self, call: Call, error: BrokerError) -> None:
        """Tell the client why a wish is not carried out."""
        for effect in self.session.failed(error, call.message_id, trio.current_time()):
            self.refuse(effect)

    def refuse(self, effect: Reply | Close) -> None:
        """Carry out an effect of a refused message."""
        self.carry_out(effect)
        if isinstance(effect, Reply) and isinstance(effect.message, messages.Error):
            self.note_refusal(code=effect.message.code, message=effect.message.message)

    def carry_out(self, effect: Reply | Close) -> None:
        match effect:
            case Reply(message, message_id):
                self.tell(message, message_id)
            case Close(code, reason):
                self.end(code, reason)

    async def authenticate(self, message: messages.Authenticate, message_id: str | None) -> None:
        """Verify a token, and continue under it if it is valid."""
        services, held = self.services, self.session.principal
        chosen = held.tenant if held and held.monitoring else self.asked
        principal = await services.verify(message.token, message.tenant or chosen)
        if self.closing:  # ended while a key was fetched: it could give nothing back any more
            return
        services.check(principal)
        if held is None:
            verifier = services.verifier
            await services.places.claim(self, principal)
            if self.closing:
                return
            services.check(principal)  # bans and reloads do not find a connection that waits for a place
            if services.verifier is not verifier:
                self.end(CloseCode.SERVICE_RESTART, "the settings for tokens have changed")
                return
        now = trio.current_time()
        self.tell(self.session.authenticated(principal, now=now), message_id)
        self.rights_changed()
        services.wheel.schedule(self, self.on_timer(now))
        with suppress(Unavailable):  # NATS has not been reached: attach at the first subscription
            self.attach()
        for feature in services.features:
            feature.authenticated(self, principal, renewed=held is not None)
        log.debug(
            "connection_authenticated", renewed=held is not None, certificate=self.certificate, **self.who()
        )

    def rights_changed(self) -> None:
        """Have all features apply what the token allows now."""
        for feature in self.services.features:
            feature.rights_changed(self)

    def settings_changed(self, verifier: Verifier | None) -> None:
        """Apply another configuration.

        The connection ends if that may not accept its token (None: no token): the client reconnects with the
        token, and is told then.
        """
        with Boundary(self):
            if self.closing:
                return
            session = self.session
            try:
                held = session.principal
                if held and verifier is None:
                    raise TokenInvalid("the settings for tokens have changed")
                principal = verifier.again(held) if held and verifier else None
            except TokenInvalid as error:
                self.end(CloseCode.SERVICE_RESTART, error.message)
                return
            now, budgets = session.principal, self.services.budgets
            self.spend_from(budgets.again(session.budgets, self.peer, now, session.counted))
            self.transport.limit_messages(self.limits.message_bytes)
            session.settings_changed(self.limits, self.services.config.auth.expiring_seconds, principal)
            if principal is not None:
                self.rights_changed()
            if not self.closing:
                self.services.wheel.schedule(self, self.on_timer(trio.current_time()))

    def keep_out(self) -> None:
        """End the connection if its token has been revoked or its tenant suspended."""
        with Boundary(self):
            principal = self.session.principal
            if principal is None or self.closing:
                return
            try:
                self.services.check(principal)
            except TokenRevoked as error:
                self.tell(to_message(error))
                self.end(CloseCode.TOKEN_REVOKED, error.message)

    def attach(self) -> Principal:
        """Join the tenant, once, and return the principal.

        Raise `Unavailable` before NATS is reached, and `TokenRevoked`.
        """
        principal = self.session.client()
        if self.tenant is None:
            if reason := self.services.trouble():
                raise Unavailable(reason, retry_after=1.0)
            self.services.check(principal)  # bans may have been read since it was authenticated
            self.tenant = self.services.tenants.get(principal.tenant)
            self.tenant.enter(self.flow)
            self.flow.user = None if principal.monitoring else principal.user
        return principal

    @property
    def kind(self) -> str:
        """Return the kind of its link, for people."""
        return self.transport.name

    def position(self) -> str | None:
        """Return the live position to tell the client, once there is one."""
        events = self.flow.log
        return events.text(self.flow.position()) if events else None

    # --- what the client is told --------------------------------------------------------------------

    def tell(self, message: messages.ServerMessage, message_id: str | None = None) -> None:
        if self.closing:
            return
        with Boundary(self):
            self.flow.push(self.encode(message, message_id))
            if isinstance(message, messages.Gap):
                self.services.meters.gaps[message.reason] += 1
            elif isinstance(message, messages.Error):
                self.services.meters.errors[message.code] += 1

    def encode(self, message: messages.ServerMessage, message_id: str | None = None) -> bytes:
        return self.transport.frame(codec.encode(message, message_id))

    def heed_notice(self, notice: Notice) -> None:
        """Tell the client what all clients are told."""
        if notice.message:
            self.tell(notice.message)
        if notice.reason and (unstored := self.flow.unstored):
            channel = messages.named(each.pattern for each in unstored)
            self.tell(messages.Gap(channel=channel, reason=notice.reason))

    def held_up(self) -> None:
        """Start sending. A stall of the client begins here, however long it had nothing to accept before."""
        self.progress = trio.current_time()
        self.fell_behind()

    def fell_behind(self) -> None:
        """Start or wake the sending task, if there is something to send."""
        flow = self.flow
        if self.sender is not None:
            self.sender.woken.set()
        elif not self.lost and (flow.rest or flow.main or flow.beside or flow.owed):
            with Boundary(self):
                self.progress = trio.current_time()
                self.transport.behind(begins=True)
                sender = self.sending()
                self.services.nursery.start_soon(self.send, sender)
                self.sender = sender

    async def send(self, sender: Sending) -> None:
        with Boundary(self):
            try:
                with sender.scope:
                    await sender.run()
            finally:
                self.sender = None
                self.progressed()
                self.transport.behind(begins=False)

    def sending(self) -> Sending:
        return Sending(
            send_some=self.send_some,
            flow=self.flow,
            catch_ups_at_once=self.limits.catch_ups_per_connection,
            progressed=self.progressed,
            meters=self.services.meters,
            spawn=lambda work: self.services.nursery.start_soon(self.beside, work),
        )

    async def beside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do work that continues after the end of the connection."""
        with Boundary(self):
            await work()

    async def send_some(self, data: bytes | memoryview) -> int:
        return await (self.pace or self.transport).send_some(data)

    def progressed(self) -> None:
        self.progress = trio.current_time()
        if self.drained is not None:
            self.drained.set()

    def too_slow(self) -> None:
        self.end(CloseCode.TOO_SLOW, "more data is unsent than a subscription with lag close allows")

    def send_away(self) -> None:
        resting = Unavailable("the tenant cannot be served for a while", retry_after=REST_SECONDS)
        self.tell(to_message(resting))
        self.end(CloseCode.SERVICE_RESTART, "the tenant cannot be served for a while")

    # --- time ---------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> float:
        with Boundary(self):
            return self.when_due(now)
        return inf

    def when_due(self, now: float) -> float:
        effects, due = self.session.timers(now)
        for effect in effects:
            self.carry_out(effect)
        if effects:
            return inf if self.closing else self.when_due(now)
        return min(due, self.heartbeat(now))

    def heartbeat(self, now: float) -> float:
        """Send pings while nothing waits for the client; check progress while something does."""
        if self.flow.rest:
            self.pinged, self.heard = None, now
            if self.pace:  # data held back by the pace is not a stall of the client
                self.progress = max(self.progress, min(now, self.pace.until))
            if now >= self.progress + self.limits.stall_seconds:
                self.end(CloseCode.HEARTBEAT, "the client has read nothing for too long")
                return inf
            # By then it may have caught up and need a ping.
            return min(self.progress + self.limits.stall_seconds, now + self.limits.heartbeat_seconds)
        if self.pinged is not None:
            if self.busy:  # nothing is read meanwhile: the answer may be there
                self.pinged = now
            elif now >= self.pinged + self.limits.heartbeat_timeout_seconds:
                self.end(CloseCode.HEARTBEAT, "no answer to a ping")
                return inf
            elif now >= self.late_from(self.pinged) and not self.late:
                self.note_silence(late=True)
            return self.due_after(now, self.pinged)
        if now < self.heard + self.limits.heartbeat_seconds:
            # `stall_seconds` may be shorter, and a stall must not be detected late.
            return min(self.heard + self.limits.heartbeat_seconds, now + self.limits.stall_seconds)
        answers = self.transport.answers
        self.pinged, self.heard = (now, self.heard) if answers else (None, now)
        self.flow.push(self.transport.ping(self.position()))
        if answers:
            return self.due_after(now, now)
        return now + min(self.limits.heartbeat_seconds, self.limits.stall_seconds)

    def due_after(self, now: float, pinged: float) -> float:
        """Return when to check for the answer to a ping; if it comes, the next ping may be due sooner."""
        late = self.late_from(pinged)
        check = late if now < late else pinged + self.limits.heartbeat_timeout_seconds
        return min(check, now + self.limits.heartbeat_seconds)

    def late_from(self, pinged: float) -> float:
        """Return from when on the answer to a ping is late, and others may be told so."""
        return pinged + self.limits.heartbeat_timeout_seconds / 2

    def note_silence(self, *, late: bool) -> None:
        self.late = late
        for feature in self.services.features:
            feature.silent(self, late=late)

    # --- its place among its user's connections ------------------------------------------------------

    async def come_back(self, data: bytes) -> bool:
        """Take a place again before a message is processed; otherwise refuse the message and keep resting."""
        try:
            await self.services.places.come_back(self)
        except BrokerError as error:
            self.tell(to_message(error), codec.stray_id(data))
            return False
        return not self.closing

    def ask(self) -> None:
        """Ask the client for a sign of life."""
        with Boundary(self):
            self.flow.push(self.transport.ask())

    @property
    def unsent(self) -> bool:
        return self.flow.rest is not None

    def held_back(self, since: float) -> bool:
        """Return whether it is the broker that holds back what is unsent."""
        return self.pace is not None and self.unsent and self.pace.until > since

    def give_up_place(self) -> None:
        """Give the place to another connection of the user, since the client seems to be gone."""
        if self.transport.comes_and_goes:
            self.services.places.rest(self)
        else:
            self.end(CloseCode.HEARTBEAT, "no sign of life, and another connection needed its place")

    def end_rest(self) -> None:
        self.end(CloseCode.GOING_AWAY, "more sessions without a poll than a user may have")

    # --- the end ------------------------------------------------------------------------------------

    def drain(self, reconnect_after: float) -> None:
        """Ask the client to reconnect, to any broker, in `reconnect_after` seconds."""
        with Boundary(self):
            self.session.draining = True
            self.tell(
                messages.Draining(
                    reconnect_after_ms=int(reconnect_after * 1000), position=self.position() or UNSET
                )
            )

    def dismiss(self, code: CloseCode, *, at_once: bool = False) -> None:
        """End the connection because the broker stops, once the requests in progress have been answered.

        `at_once`: they are not waited for.
        """
        self.dismissed = code
        if at_once:
            self.end(code, STOPPING)
        else:
            self.leave_if_dismissed()

    def leave_if_dismissed(self) -> None:
        if self.dismissed is not None and not (self.busy or self.waiting):
            self.end(self.dismissed, STOPPING)

    def end(self, code: CloseCode, reason: str, *, by: str = "broker") -> None:
        """End the connection: send what is unsent, as far as possible, then the Close frame."""
        if not self.closing:
            self.close_code, self.close_reason, self.ended_by = code, reason, by
            self.retire()
            with Boundary(self):
                self.flow.push(self.transport.close(code, reason))
            self.scope.cancel()

    def leave(self, closed: Closed) -> None:
        """Note that the client or the link has ended, or that the client violated the link's protocol."""
        if not self.closing:
            self.close_code, self.close_reason, self.ended_by = closed.code, closed.reason, closed.by
            self.retire()
            if closed.answer:
                self.flow.push(closed.answer)
            else:
                self.lost = True

    def retire(self) -> None:
        """Give up the place in the tenant, the timer and everything held. Unsent data stays."""
        if self.closing:
            return
        self.closing = True
        each(
            self.note_position,
            partial(self.services.wheel.cancel, self),
            self.leave_tenant,
            self.stop_waiting,
            *(partial(feature.detach, self) for feature in self.services.features),
            self.lift_pace,
            self.return_budgets,
            failed=self.crashed,
        )

    def leave_tenant(self) -> None:
        if self.tenant:
            self.tenant.leave(self.flow)
        if self.sender:
            self.sender.woken.set()  # it has nothing to wait for any more

    def stop_waiting(self) -> None:
        waiting, self.waiting = self.waiting, None
        for scope in waiting or ():
            scope.cancel()

    def lift_pace(self) -> None:
        if self.pace:
            self.pace.lift()

    def note_position(self) -> None:
        if events := self.flow.log:
            self.last = events.text(sequence_of(self.flow.place()))  # without sending: the link may be lost

    def return_budgets(self) -> None:
        self.services.places.leave(self)
        session = self.session
        session.budgets = self.services.budgets.retire(session.budgets, session.counted)
        session.counted = 0  # what counts after that finds nothing, and gives nothing back again
