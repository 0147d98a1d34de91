"""One client's side of the protocol as a state machine without I/O.

`receive` takes a message and answers with effects. The connection actor carries them out and tells the
session what came of it. Time is an argument (seconds on a monotonic clock).
"""

from __future__ import annotations

import re
from collections import Counter
from math import ceil
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker import errors, limits, subjects
from broker.errors import BrokerError, CloseCode
from broker.limits import BYTES, MESSAGES, POSTS, PUBLISHES, REQUESTS, SUBSCRIPTIONS, TokenBucket, Window
from broker.wire import codec, events, positions, traces
from broker.wire import messages as m
from broker.wire.effects import (
    Acknowledge,
    After,
    Answer,
    Close,
    Effect,
    Join,
    Last,
    Leave,
    Reply,
    Retune,
    Send,
    Since,
    Snapshot,
    Start,
    Verify,
)
from broker.wire.times import parse_time, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.config import Limits
    from broker.limits import Budget, Excess
    from broker.permissions import Principal

BAD_MESSAGES, BAD_SECONDS = 10, 60.0  # the protocol page's row 4510
REFUSALS, REFUSAL_SECONDS = 50, 60.0  # what "persistently" means in row 4029
MAX_ID_BYTES = 64
DURABLE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
INT64, UINT64 = -(2**63), 2**64


@attrs.define(eq=False)
class Session:
    """What a client may do, has done, and still has time for.

    `subscriptions` holds each pattern with what is left out of it; the actor adds to it once a
    subscription stands. `budgets` are what it is limited by beside its own `limits`, and are set by the
    actor; `hits` counts what was in the way, by scope and resource.
    """

    limits: Limits
    began: float
    expiring_seconds: float
    principal: Principal | None = None
    subscriptions: dict[str, tuple[str, ...]] = attrs.Factory(dict)
    # The patterns under each durable name. Replaced, never changed: most clients have none, and share it.
    durables: Mapping[str, set[str]] = MappingProxyType({})
    budgets: tuple[Budget, ...] = ()
    hits: Counter[tuple[str, str]] = attrs.Factory(Counter)
    counted: int = 0  # subscriptions that are held in the budgets
    draining: bool = False
    expires: float | None = None  # on the monotonic clock
    life: float = 0.0  # what the token had left of it when it came
    warned: bool = False
    requests: TokenBucket | None = None  # these three are made when first needed: most clients
    bad: Window | None = None  # send one or two messages, and memory per idle connection counts
    refusals: Window | None = None

    def receive(self, data: bytes, now: float) -> list[Effect]:
        """What follows from one text message."""
        excess = limits.take(self.budgets, {MESSAGES: 1, BYTES: len(data)}, now)
        try:
            decoded = codec.decode(data)
        except codec.Undecodable as fault:
            return self.failed(self.limited(excess) if excess else fault.error, fault.message_id, now)
        try:
            if excess:
                raise self.limited(excess)
            self.admit(decoded.message, now)
            return self.handle(decoded.message, decoded.message_id)
        except BrokerError as error:
            return self.failed(error, decoded.message_id, now)

    def admit(self, message: m.ClientMessage, now: float) -> None:
        if isinstance(message, m.Publish) and self.principal:
            if excess := limits.take(self.budgets, {PUBLISHES: 1, POSTS: 1}, now):
                raise self.limited(excess)
            return
        if self.requests is None:
            self.requests = TokenBucket(
                rate=self.limits.requests_per_second, burst=self.limits.requests_burst, now=now
            )
        if wait := self.requests.take(now):
            raise self.limited(limits.Excess(limits.CONNECTION, REQUESTS, wait))

    def limited(self, excess: Excess) -> errors.RateLimited:
        self.hits[excess.scope, excess.resource] += 1
        return errors.RateLimited(f"{excess}; wait before the next", retry_after=excess.seconds)

    def handle(self, message: m.ClientMessage, message_id: str | None) -> list[Effect]:
        match message:
            case m.Authenticate():
                return [Verify(token=message.token, tenant=message.tenant, message_id=message_id)]
            case m.Ping():
                return [Answer(message_id)]
        if self.principal is None:
            raise errors.Unauthenticated(f"{message.type}: send authenticate first")
        match message:
            case m.Subscribe():
                return [self.subscribe(message, self.principal, message_id)]
            case m.Unsubscribe():
                return [self.unsubscribe(message, self.principal, message_id)]
            case m.Publish():
                return [self.publish(message, self.principal, message_id)]
            case m.Acknowledge():
                return [self.acknowledge(message, message_id)]

    # --- tokens ------------------------------------------------------------------------------------

    def authenticated(self, principal: Principal, *, now: float, message_id: str | None) -> list[Effect]:
        """What follows from a good token, which has just been verified."""
        held = self.principal
        if held and (held.user, held.tenant) != (principal.user, principal.tenant):
            other = errors.Forbidden(
                "authenticate: a connection keeps its user and tenant; open another one for the other token"
            )
            return self.failed(other, message_id, now)
        self.principal = principal
        self.expires, self.life = now + principal.life, principal.life
        self.warned = False
        reply = m.Authenticated(
            tenant=principal.tenant,
            user=principal.user,
            private=principal.private,
            expires_at=rfc3339(principal.expires_at),
            permissions={
                "subscribe": list(principal.subscribe),
                "publish": list(principal.publish),
                "deny": list(principal.deny),
            },
        )
        return [Reply(reply, message_id), *self.recheck(principal)]

    def adopt(self, limits: Limits, expiring_seconds: float, principal: Principal | None) -> list[Effect]:
        """Goes on with other limits, and with what the token allows under another configuration.

        What is due when may have changed, too.
        """
        self.limits, self.expiring_seconds = limits, expiring_seconds
        if self.requests is not None:
            self.requests.adopt(rate=limits.requests_per_second, burst=limits.requests_burst)
        if principal is None:
            return []
        self.principal = principal
        return self.recheck(principal)

    def recheck(self, principal: Principal) -> list[Effect]:
        """What a renewed token changes in the subscriptions that stand."""
        effects: list[Effect] = []
        for pattern, deny in list(self.subscriptions.items()):
            try:
                now_denied = principal.check_subscribe(pattern)
            except errors.Forbidden as error:
                del self.subscriptions[pattern]
                effects.append(Leave(patterns=[pattern], channel=pattern, code=error.code))
                continue
            if now_denied != deny:
                self.subscriptions[pattern] = now_denied
                effects.append(Retune(pattern=pattern, deny=now_denied))
        self.recount()
        return effects

    # --- requests ----------------------------------------------------------------------------------

    def subscribe(self, message: m.Subscribe, principal: Principal, message_id: str | None) -> Join:
        if self.draining:
            raise errors.Unavailable("subscribe: this broker is about to stop; reconnect first")
        start = self.start(message)
        if message.durable is not None:
            self.check_durable(message.durable)
        most = self.limits.subscriptions_per_connection
        texts = message.channel if isinstance(message.channel, list) else [message.channel]
        if len(texts) > most:  # answered as one: a refusal is longer than what is refused
            raise errors.TooManySubscriptions(f"{len(texts)} in one list; a connection has at most {most}")
        accepted: dict[str, tuple[str, ...]] = {}
        refused: list[m.Refused] = []
        first: BrokerError | None = None
        for text in texts:
            try:
                pattern, deny = check_pattern(text, principal, message.lag)
                held = self.subscriptions.keys() | accepted.keys()
                if pattern not in held:
                    self.reserve(text, most - len(held))
                accepted[pattern] = deny
            except BrokerError as error:
                first = first or error
                refused.append(m.Refused(channel=text[:256], code=error.code, message=error.message))
        if first and not accepted:
            raise first
        return Join(
            patterns=accepted,
            refused=refused,
            start=start,
            durable=message.durable,
            lag=message.lag,
            listed=isinstance(message.channel, list),
            message_id=message_id,
        )

    def reserve(self, text: str, room: int) -> None:
        """Counts a further subscription; `room`: so many the connection may have. See `recount`."""
        if room < 1:
            excess: Excess | None = limits.Excess(limits.CONNECTION, SUBSCRIPTIONS, 0.0)
        else:
            excess = limits.acquire(self.budgets, SUBSCRIPTIONS)
        if excess:
            self.hits[excess.scope, excess.resource] += 1
            raise errors.TooManySubscriptions(f"{subjects.shown(text)}: {excess}; unsubscribe from another")
        self.counted += 1

    def recount(self) -> None:
        """Has the budgets hold the subscriptions that stand, and no others: whenever those have changed.

        Also when a subscribe is over, whatever came of it.
        """
        limits.hold(self.budgets, SUBSCRIPTIONS, len(self.subscriptions) - self.counted)
        self.counted = len(self.subscriptions)

    def start(self, message: m.Subscribe) -> Start | None:
        given: dict[str, Any] = {
            "position": message.position,
            "since": message.since,
            "last": message.last,
            "snapshot": message.snapshot or None,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise errors.BadMessage(f"payload: {' and '.join(names)} exclude each other")
        if message.position is not None:
            return After(positions.parse(message.position))
        if message.since is not None:
            return Since(parse_time(message.since))
        if message.last is not None:
            if not 1 <= message.last <= self.limits.last_events:
                raise errors.BadMessage(f"payload.last: must be 1 to {self.limits.last_events}")
            return Last(message.last)
        return Snapshot() if message.snapshot else None

    def unsubscribe(self, message: m.Unsubscribe, principal: Principal, message_id: str | None) -> Leave:
        texts = message.channel if isinstance(message.channel, list) else [message.channel]
        patterns = [subjects.expand_me(text, principal.room) for text in texts]
        for pattern in patterns:
            if pattern not in self.subscriptions:
                raise errors.NotSubscribed(f"{subjects.shown(pattern)}: there is no such subscription")
        for pattern in dict.fromkeys(patterns):
            del self.subscriptions[pattern]
        self.recount()
        channel = patterns if isinstance(message.channel, list) else patterns[0]
        return Leave(patterns=patterns, channel=channel, message_id=message_id)

    def check_durable(self, name: str) -> None:
        check_name(name)
        if name in self.durables:
            raise errors.Conflict(f"payload.durable: {name} is held by another subscribe of this connection")

    def acknowledge(self, message: m.Acknowledge, message_id: str | None) -> Acknowledge:
        if message.durable not in self.durables:
            raise errors.NotSubscribed("payload.durable: no subscription of this connection has this name")
        position = positions.parse(message.position)
        return Acknowledge(durable=message.durable, position=position, message_id=message_id)

    def subscribed(self, wish: Join) -> None:
        """The subscriptions of a wish stand from now on."""
        self.subscriptions.update(wish.patterns)
        stored = {each for each in wish.patterns if not subjects.is_live(each)}
        if wish.durable is not None and stored:
            self.durables = {**self.durables, wish.durable: stored}

    def forget_durables(self) -> list[str]:
        """Lets go of the durable names that no subscription has any more, and says which."""
        gone = [name for name, held in self.durables.items() if not held & self.subscriptions.keys()]
        self.durables = {name: held for name, held in self.durables.items() if name not in gone}
        return gone

    def publish(self, message: m.Publish, principal: Principal, message_id: str | None) -> Send:
        channel = subjects.parse_channel(subjects.expand_me(message.channel, principal.room))
        principal.check_publish(channel)
        if message.id is not None and not 1 <= len(message.id.encode()) <= MAX_ID_BYTES:
            raise errors.BadMessage(f"payload.id: a string of 1 to {MAX_ID_BYTES} bytes")
        if holds_huge_integer(message.event):
            raise errors.BadMessage("payload.event: an integer of more than 64 bits; send it as a string")
        body = msgspec.json.encode(message.event)
        if fault := events.fault(principal.tenant, body, self.limits.publish_bytes):
            sentence = f"payload.event: {fault.detail}"
            if fault.reason == "too_large":
                raise errors.TooLarge(f"{sentence} (limits.publish_bytes)")
            if fault.reason == "tenant_mismatch":
                raise errors.Forbidden(sentence)
            raise errors.BadMessage(sentence)
        # One that is malformed is as good as none (W3C Trace Context, section 3.2.2.3).
        parent = message.traceparent if traces.well_formed(message.traceparent or "") else None
        return Send(channel=channel, body=body, id=message.id, message_id=message_id, traceparent=parent)

    # --- what goes wrong, and what time brings -----------------------------------------------------

    def failed(self, error: BrokerError, message_id: str | None, now: float) -> list[Effect]:
        """What follows from a request that was refused, here or later by the actor."""
        effects: list[Effect] = [Reply(to_message(error), message_id)]
        if isinstance(error, errors.RateLimited):
            self.refusals = self.refusals or Window(limit=REFUSALS, seconds=REFUSAL_SECONDS)
            if self.refusals.hit(now):
                effects.append(Close(CloseCode.RATE_LIMIT, "rate limit exceeded persistently"))
            elif error.close_code:
                effects.append(Close(error.close_code, error.message))
            return effects
        if not error.retryable:
            limits.take(self.budgets, {POSTS: 1}, now)
        if isinstance(error, errors.BadMessage | errors.UnknownType):
            self.bad = self.bad or Window(limit=BAD_MESSAGES, seconds=BAD_SECONDS)
            if self.bad.hit(now):
                effects.append(Close(CloseCode.PROTOCOL_VIOLATION, "too many bad messages"))
        elif error.close_code and self.principal is None:  # a failed renewal ends nothing
            effects.append(Close(error.close_code, error.message))
        return effects

    def timers(self, now: float) -> tuple[list[Effect], float]:
        """What is due, and when to ask again (`inf`: not before something else happens)."""
        if self.principal is None:
            deadline = self.began + self.limits.authentication_seconds
            if now >= deadline:
                late = errors.Unauthenticated("no token within the time allowed")
                close = Close(CloseCode.AUTHENTICATION_DEADLINE, "authentication deadline")
                return [Reply(to_message(late)), close], float("inf")
            return [], deadline
        if self.expires is None or now >= self.expires:
            expired = errors.TokenExpired("the token has expired")
            close = Close(CloseCode.TOKEN_EXPIRED, "token expired")
            return [Reply(to_message(expired)), close], float("inf")
        # A token that does not live for long is renewed half-way, and not as soon as it has come.
        warning = self.expires - min(self.expiring_seconds, self.life / 2)
        if not self.warned and now >= warning:
            self.warned = True
            return [Reply(m.Expiring(expires_at=rfc3339(self.principal.expires_at)))], self.expires
        return [], self.expires if self.warned else warning


def check_name(durable: str) -> None:
    if not DURABLE.match(durable):
        raise errors.BadMessage("payload.durable: 1 to 64 of the characters A-Z a-z 0-9 _ -")


def check_pattern(text: str, principal: Principal, lag: m.Lag | None) -> tuple[str, tuple[str, ...]]:
    """The pattern that `text` stands for, with what the token denies within it."""
    pattern = subjects.parse_pattern(subjects.expand_me(text, principal.room))
    if lag == "replay" and subjects.is_live(pattern):
        raise errors.BadMessage(f"{pattern}: a live channel is not stored and cannot take lag 'replay'")
    return pattern, principal.check_subscribe(pattern)


def to_message(error: BrokerError) -> m.Error:
    return m.Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after_ms=msgspec.UNSET if error.retry_after is None else ceil(error.retry_after * 1000),
    )


def holds_huge_integer(value: Any) -> bool:
    """Whether an integer in there does not fit 64 bits: other languages would round it silently."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)
        elif type(each) is int and not INT64 <= each < UINT64:
            return True
    return False
