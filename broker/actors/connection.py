"""The actor of one client: a task that reads, and one that sends what the link did not take at once.

What a message means is decided in `session`, who does it in the features, what is sent next in `flow`.
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

from broker.actors.boundary import Boundary, each
from broker.actors.pacing import Pace
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
REFUSALS = {"forbidden", "token_invalid", "token_expired", "token_revoked"}  # errors for the audit trail
STOPPING = "the broker is stopping; reconnect"
FLUSH_SECONDS = 2.0  # for what is unsent when a connection ends
REPLIES_HELD = 16  # a client with more unsent replies is not read from until it has taken some

log = structlog.get_logger()


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


@attrs.define(eq=False)
class Connection:
    """One client. A crash in here ends this connection alone: nothing that others call here raises.

    `peer`, `token`, `asked` (the tenant that it asked for) and `certificate` (the verified name in one that
    it has shown) are from the request that opened it. What a silent client costs is decided here and along
    the way to its socket: no more frames and no more values than it takes stay while its task waits.
    """

    id: str
    transport: Transport
    services: Services
    peer: str
    token: str | None  # until it has been looked at
    asked: str | None
    ended: Callable[[Connection], None]  # hears of the end, once
    certificate: str | None = None
    session: Session = attrs.field(init=False)
    flow: Flow = attrs.field(init=False)
    tenant: Tenant | None = None
    pace: Pace | None = None  # of what is sent, where that is limited
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)  # of the reading task
    sender: Sending | None = None  # while there is something to send
    drained: trio.Event | None = None  # set when the replies that held up reading are gone
    close_code: int = 1006
    close_reason: str = ""
    ended_by: str = "link"
    closing: bool = False  # it has no place in the tenant any more, and is told nothing further
    received: int = 0  # messages of the client
    last: str | None = None  # the live position at its end
    busy: bool = False  # a message of the client is being dealt with
    dismissed: CloseCode | None = None  # to be ended with this code after that
    lost: bool = False  # nothing can be sent any more
    slot: int | None = None  # the wheel's
    pinged: float | None = None  # when the heartbeat that is not answered yet was sent
    heard: float = 0.0  # when the last heartbeat was answered
    progress: float = 0.0  # when the link last took something of what had been left
    spoke: float = 0.0  # when anything last came from the client
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
        """From the opening to the end of the link."""
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
            self.flow.client = NOBODY  # they hold each other: a cycle for a full collection to end
            each(  # the first two once more, should they have failed
                self.leave_tenant,
                partial(self.services.wheel.cancel, self),
                self.transport.abort,
                partial(self.ended, self),
                failed=self.note_crash,
            )

    def spend_from(self, budgets: tuple[Budget, ...]) -> None:
        """What it is limited by from now on."""
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
        """Sends what is unsent, and lets the client be the one to close."""
        with trio.move_on_after(FLUSH_SECONDS) as flushing:
            while self.sender and not self.lost:
                self.drained = trio.Event()
                await self.drained.wait()
        if not (flushing.cancelled_caught or self.lost):
            await self.transport.linger()

    def crashed(self, error: Exception) -> None:
        """End at once and without a word: what has failed may be what would say it."""
        if isinstance(error, LinkLost):
            self.lost = True
            self.scope.cancel()
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
        """Note what the client may not do, and a token that is not believed; no other error."""
        if code in REFUSALS:
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
        self.services.wheel.schedule(self, self.on_timer(trio.current_time()))
        self.tell(self.greeting())
        token, self.token = self.token, None
        if token:
            await self.attempt(Call(AUTHENTICATE, messages.Authenticate(token=token), None))

    async def heed(self, inbound: Inbound) -> None:
        """Does what one message is about."""
        await trio.lowlevel.checkpoint_if_cancelled()  # what came in just as we closed is void
        if not isinstance(inbound, Resting):
            self.spoke = trio.current_time()
        match inbound:
            case Text(data=data):
                self.busy = True
                self.received += 1
                if not self.resting or await self.come_back(data):
                    await self.receive(data)
                self.busy = False
                if self.dismissed is not None:
                    self.end(self.dismissed, STOPPING)
            case Control(data=data):
                self.flow.push(data)
            case Alive():
                self.heard, self.pinged = trio.current_time(), None
            case Resting():
                self.services.places.rest(self)
            case Closed() as closed:
                self.leave(closed)
        await self.let_drain()

    async def let_drain(self) -> None:
        """Holds up reading from a client that does not take the replies to what it said."""
        while len(self.flow.rest or ()) > REPLIES_HELD and self.sender:
            self.drained = trio.Event()
            await self.drained.wait()

    def greeting(self) -> messages.Established:
        return messages.Established(
            connection_id=self.id,
            protocol=PROTOCOL,
            features=[traces.PARENT],
            heartbeat_seconds=self.limits.heartbeat_seconds,
            limits={
                **self.services.budgets.shown,
                "duplicate_window_seconds": self.services.duplicate_window,
            },
        )

    async def receive(self, data: bytes) -> None:
        """Do what a message of the client asks for."""
        for effect in self.session.receive(data, trio.current_time()):
            if isinstance(effect, Call):
                await self.attempt(effect)
            else:
                self.refuse(effect)

    async def attempt(self, call: Call) -> None:
        """Have a wish carried out. That can still fail: then the client is told, and that is that."""
        try:
            reply = await call.request.perform(self, call.wish, call.message_id)
        except BrokerError as error:
            for effect in self.session.failed(error, call.message_id, trio.current_time()):
                self.refuse(effect)
        else:
            if reply is not None:
                self.tell(reply, call.message_id)

    def refuse(self, effect: Reply | Close) -> None:
        """Carry out what follows from a message that was refused."""
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
        """Go on under a token, if it is good."""
        services, held = self.services, self.session.principal
        chosen = held.tenant if held and held.monitoring else self.asked
        principal = await services.verify(message.token, message.tenant or chosen)
        if self.closing:  # it ended while a key was fetched, and gives nothing back any more
            return
        services.check(principal)
        if held is None:
            verifier = services.verifier
            await services.places.claim(self, principal)
            if self.closing:
                return
            services.check(principal)  # whoever waits for a place is found by no ban, and by no reload
            if services.verifier is not verifier:
                self.end(CloseCode.SERVICE_RESTART, "tokens are read in another way now")
                return
        now = trio.current_time()
        self.tell(self.session.authenticated(principal, now=now), message_id)
        self.rights_changed()
        services.wheel.schedule(self, self.on_timer(now))
        with suppress(Unavailable):  # before NATS was reached: then with the first subscription
            self.attach()
        for feature in services.features:
            feature.authenticated(self, principal, renewed=held is not None)
        log.debug(
            "connection_authenticated", renewed=held is not None, certificate=self.certificate, **self.who()
        )

    def rights_changed(self) -> None:
        """Have all features go on with what the token allows now."""
        for feature in self.services.features:
            feature.rights_changed(self)

    def settings_changed(self, verifier: Verifier | None) -> None:
        """Go on under another configuration.

        Or end, when that may not believe the token (None: any token): the client comes back with it, and is
        told then.
        """
        with Boundary(self):
            if self.closing:
                return
            session = self.session
            try:
                held = session.principal
                if held and verifier is None:
                    raise TokenInvalid("tokens are read in another way now")
                principal = verifier.again(held) if held and verifier else None
            except TokenInvalid as error:
                self.end(CloseCode.SERVICE_RESTART, error.message)
                return
            now, budgets = session.principal, self.services.budgets
            self.spend_from(budgets.again(session.budgets, self.peer, now, session.counted))
            self.transport.adopt(self.limits.message_bytes)
            session.settings_changed(self.limits, self.services.config.auth.expiring_seconds, principal)
            if principal is not None:
                self.rights_changed()
            if not self.closing:
                self.services.wheel.schedule(self, self.on_timer(trio.current_time()))

    def keep_out(self) -> None:
        """Ends when its token has been revoked, or its tenant suspended."""
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
        """Take its place in its tenant, once, and return who it is.

        Raise `Unavailable` before NATS was reached, and `TokenRevoked`.
        """
        principal = self.session.client()
        if self.tenant is None:
            if reason := self.services.trouble():
                raise Unavailable(reason, retry_after=1.0)
            self.services.check(principal)  # bans may have been read since it came in
            self.tenant = self.services.tenants.get(principal.tenant)
            self.tenant.enter(self.flow)
        return principal

    @property
    def kind(self) -> str:
        """The kind of its link, for people."""
        return self.transport.name

    def position(self) -> str | None:
        """The live position to tell the client, once there is one."""
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
        """Tells the client what all are told."""
        if notice.message:
            self.tell(notice.message)
        if notice.reason and (unstored := self.flow.unstored):
            channel = messages.named(each.pattern for each in unstored)
            self.tell(messages.Gap(channel=channel, reason=notice.reason))

    def fell_behind(self) -> None:
        """Start or wake the sending task, if there is something to send."""
        flow = self.flow
        if self.sender is not None:
            self.sender.woken.set()
        elif not self.lost and (flow.rest or flow.main or flow.beside):
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
        """Do work that is not broken off with the connection."""
        with Boundary(self):
            await work()

    async def send_some(self, data: bytes | memoryview) -> int:
        return await (self.pace or self.transport).send_some(data)

    def progressed(self) -> None:
        self.progress = trio.current_time()
        if self.drained is not None:
            self.drained.set()

    def too_slow(self) -> None:
        self.end(CloseCode.TOO_SLOW, "more is unsent than a subscription with lag close allows")

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
        """Pings while nothing waits for the client, judges by progress while something does."""
        if self.flow.rest:
            self.pinged, self.heard = None, now
            if self.pace:  # what we hold back is not what the client does not take
                self.progress = max(self.progress, min(now, self.pace.until))
            if now >= self.progress + self.limits.stall_seconds:
                self.end(CloseCode.HEARTBEAT, "the client has taken nothing for too long")
                return inf
            # It may have caught up by then, and is to be pinged again.
            return min(self.progress + self.limits.stall_seconds, now + self.limits.heartbeat_seconds)
        if self.pinged is not None:
            if now >= self.pinged + self.limits.heartbeat_timeout_seconds:
                self.end(CloseCode.HEARTBEAT, "no answer to a ping")
                return inf
            return self.due_after(now, self.pinged)
        if now < self.heard + self.limits.heartbeat_seconds:
            # A stall that may be shorter than that is not to be found later for it.
            return min(self.heard + self.limits.heartbeat_seconds, now + self.limits.stall_seconds)
        answers = self.transport.answers
        self.pinged, self.heard = (now, self.heard) if answers else (None, now)
        self.flow.push(self.transport.ping(self.position()))
        if answers:
            return self.due_after(now, now)
        return now + min(self.limits.heartbeat_seconds, self.limits.stall_seconds)

    def due_after(self, now: float, pinged: float) -> float:
        """When to look again for the answer to a ping; with one the next ping is due, perhaps sooner."""
        return min(pinged + self.limits.heartbeat_timeout_seconds, now + self.limits.heartbeat_seconds)

    # --- its place among its user's connections ------------------------------------------------------

    async def come_back(self, data: bytes) -> bool:
        """Takes a place again before it heeds a message; or the message is refused, and it rests on."""
        try:
            await self.services.places.come_back(self)
        except BrokerError as error:
            self.tell(to_message(error), codec.stray_id(data))
            return False
        return not self.closing

    def ask(self) -> None:
        """Asks the client for a sign of life."""
        with Boundary(self):
            self.flow.push(self.transport.ask())

    @property
    def unsent(self) -> bool:
        return self.flow.rest is not None

    def held_back(self, since: float) -> bool:
        """Whether it is us who keep what is unsent from the client."""
        return self.pace is not None and self.unsent and self.pace.until > since

    def give_up_place(self) -> None:
        """For another connection of its user, as nobody seems to be there."""
        if self.transport.comes_and_goes:
            self.services.places.rest(self)
        else:
            self.end(CloseCode.HEARTBEAT, "no sign of life, and its place was wanted")

    def end_rest(self) -> None:
        self.end(CloseCode.GOING_AWAY, "more sessions without a poll than a user may have")

    # --- the end ------------------------------------------------------------------------------------

    def drain(self, reconnect_after: float) -> None:
        """Asks the client to come back elsewhere, or to us, in `reconnect_after` seconds."""
        with Boundary(self):
            self.session.draining = True
            self.tell(
                messages.Draining(
                    reconnect_after_ms=int(reconnect_after * 1000), position=self.position() or UNSET
                )
            )

    def dismiss(self, code: CloseCode) -> None:
        """Ends the connection because the broker stops; what the client has asked for is answered first."""
        if self.busy:
            self.dismissed = code
        else:
            self.end(code, STOPPING)

    def end(self, code: CloseCode, reason: str, *, by: str = "broker") -> None:
        """Ends the connection from our side: what is unsent may still go out, then the Close frame."""
        if not self.closing:
            self.close_code, self.close_reason, self.ended_by = code, reason, by
            self.retire()
            with Boundary(self):
                self.flow.push(self.transport.close(code, reason))
            self.scope.cancel()

    def leave(self, closed: Closed) -> None:
        """The client has ended it, or the link has, or broke what is spoken on it."""
        if not self.closing:
            self.close_code, self.close_reason, self.ended_by = closed.code, closed.reason, closed.by
            self.retire()
            if closed.answer:
                self.flow.push(closed.answer)
            else:
                self.lost = True

    def retire(self) -> None:
        """Gives up its place in the tenant, its timer and all that it holds. What is unsent stays."""
        if self.closing:
            return
        self.closing = True
        each(
            self.note_position,
            partial(self.services.wheel.cancel, self),
            self.leave_tenant,
            *(partial(feature.detach, self) for feature in self.services.features),
            self.lift_pace,
            self.return_budgets,
            failed=self.crashed,
        )

    def leave_tenant(self) -> None:
        if self.tenant:
            self.tenant.leave(self.flow)
        if self.sender:
            self.sender.woken.set()  # there is nothing to wait for any more

    def lift_pace(self) -> None:
        if self.pace:
            self.pace.lift()

    def note_position(self) -> None:
        if events := self.flow.log:
            self.last = events.text(sequence_of(self.flow.place()))  # sends nothing: the link may be lost

    def return_budgets(self) -> None:
        self.services.places.leave(self)
        self.session.budgets = self.services.budgets.retire(self.session.budgets, self.session.counted)
