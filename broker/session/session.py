"""The protocol with one client as a state machine without I/O.

`receive` takes a message and returns effects, which the connection carries out. Time is an argument (seconds
on a monotonic clock).
"""

from __future__ import annotations

from collections import Counter
from math import ceil
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs
import msgspec

from broker import errors, limits
from broker.errors import BrokerError, CloseCode
from broker.limits import BYTES, MESSAGES, POSTS, REQUESTS, SUBSCRIPTIONS, TokenBucket, Window
from broker.session.requests import Call, Close, Reply
from broker.subjects import shown
from broker.wire import codec
from broker.wire import messages as m
from broker.wire.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from broker.config import Limits
    from broker.limits import Budget, Excess
    from broker.permissions import Principal
    from broker.session.requests import Effect, Standing, Table

BAD_MESSAGES, BAD_SECONDS = 10, 60.0  # close code 4510
REFUSALS, REFUSAL_SECONDS = 50, 60.0  # close code 4029


class Nothing:
    """The subscriptions of a client without a flow: none."""

    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        return MappingProxyType({})

    def filtered(self) -> set[str]:
        return set()


@attrs.define(eq=False)
class Session:
    """The state of the protocol with one client: its permissions, its rates and its deadlines.

    `table` has the requests that it may send; `standing` has its subscriptions. `budgets` limit it besides
    its own `limits`; `hits` counts limits reached, by scope and resource.
    """

    limits: Limits
    began: float
    expiring_seconds: float
    table: Table
    standing: Standing = attrs.Factory(Nothing)
    principal: Principal | None = None
    budgets: tuple[Budget, ...] = ()
    hits: Counter[tuple[str, str]] = attrs.Factory(Counter)
    counted: int = 0  # subscriptions that are held in the budgets
    draining: bool = False
    expires: float | None = None  # on the monotonic clock
    life: float = 0.0  # the remaining validity of the token when it was verified
    warned: bool = False
    requests: TokenBucket | None = None  # these three are created on first use: most clients
    bad: Window | None = None  # send one or two messages, and memory per idle connection counts
    refusals: Window | None = None

    def receive(self, data: bytes, now: float) -> Sequence[Effect]:
        """Return the effects of one text message."""
        excess = limits.charge(self.budgets, {MESSAGES: 1, BYTES: len(data)}, now)
        try:
            decoded = codec.decode(data)
        except codec.Undecodable as fault:
            return self.failed(self.limited(excess) if excess else fault.error, fault.message_id, now)
        try:
            if excess:
                raise self.limited(excess)
            if decoded.message.type not in self.table:
                raise errors.UnknownType(f"type: {decoded.message.type!r} is switched off on this broker")
            self.admit(decoded.message, now)
            return [self.call(decoded.message, decoded.message_id)]
        except BrokerError as error:
            return self.failed(error, decoded.message_id, now)

    def admit(self, message: m.ClientMessage, now: float) -> None:
        """Count a message against the rates. Raise `RateLimited`."""
        if self.principal and (costs := self.table[message.type].costs):
            self.spend(costs, now)
            return
        if self.requests is None:
            self.requests = TokenBucket(
                rate=self.limits.requests_per_second, burst=self.limits.requests_burst, now=now
            )
        if wait := self.requests.charge(now):
            raise self.limited(limits.Excess(limits.CONNECTION, REQUESTS, wait))

    def spend(self, costs: Collection[str], now: float) -> None:
        """Count one of each of these rates. Raise `RateLimited`."""
        if excess := limits.charge(self.budgets, dict.fromkeys(costs, 1), now):
            raise self.limited(excess)

    def limited(self, excess: Excess) -> errors.RateLimited:
        self.hits[excess.scope, excess.resource] += 1
        return errors.RateLimited(f"{excess}; wait before the next", retry_after=excess.seconds)

    def call(self, message: m.ClientMessage, message_id: str | None) -> Call:
        """Return the checked request of a message."""
        request = self.table[message.type]
        if self.principal is None and not request.open:
            raise errors.Unauthenticated(f"{message.type}: send authenticate first")
        return Call(request, request.check(self, message), message_id)

    def client(self) -> Principal:
        """Return the principal. Raise `Unauthenticated` before a token has been presented."""
        if self.principal is None:
            raise errors.Unauthenticated("authenticate first")
        return self.principal

    # --- tokens ------------------------------------------------------------------------------------

    def authenticated(self, principal: Principal, *, now: float) -> m.Authenticated:
        """Continue under a token that has just been verified; return the reply.

        Raise `Forbidden` for a token of another user or tenant.
        """
        held = self.principal
        if held and (held.user, held.tenant) != (principal.user, principal.tenant):
            raise errors.Forbidden(
                "authenticate: a connection keeps its user and tenant; open another one for the other token"
            )
        self.principal = principal
        self.expires, self.life = now + principal.life, principal.life
        self.warned = False
        return m.Authenticated(
            tenant=principal.tenant,
            user=principal.user,
            private=principal.private,
            expires_at=rfc3339(principal.expires_at),
            permissions={
                "subscribe": list(principal.subscribe),
                "publish": list(principal.publish),
                "request": list(principal.request),
                "change": list(principal.change),
                "deny": list(principal.deny),
            },
        )

    def settings_changed(self, limits: Limits, expiring_seconds: float, principal: Principal | None) -> None:
        """Apply other limits, and the permissions of the token under another configuration.

        The timers may be due at other times afterwards.
        """
        self.limits, self.expiring_seconds = limits, expiring_seconds
        if self.requests is not None:
            self.requests.set_rate(rate=limits.requests_per_second, burst=limits.requests_burst)
        if principal is not None:
            self.principal = principal

    # --- subscriptions in the budgets ---------------------------------------------------------------

    def reserve(self, text: str, left: int) -> None:
        """Count one more subscription, of the `left` that the connection may still have; see `recount`.

        Raise `TooManySubscriptions`.
        """
        if left < 1:
            excess: Excess | None = limits.Excess(limits.CONNECTION, SUBSCRIPTIONS, 0.0)
        else:
            excess = limits.acquire(self.budgets, SUBSCRIPTIONS)
        if excess:
            self.hits[excess.scope, excess.resource] += 1
            raise errors.TooManySubscriptions(f"{shown(text)}: {excess}; unsubscribe from another")
        self.counted += 1

    def recount(self) -> None:
        """Have the budgets hold exactly the existing subscriptions.

        Call it after every change of these, and after every subscribe, whatever its outcome.
        """
        standing = len(self.standing.subscriptions())
        limits.hold(self.budgets, SUBSCRIPTIONS, standing - self.counted)
        self.counted = standing

    # --- failures and timers -----------------------------------------------------------------------

    def failed(self, error: BrokerError, message_id: str | None, now: float) -> Sequence[Reply | Close]:
        """Return the effects of a refused request, whether it was refused here or when it was carried out."""
        effects: list[Reply | Close] = [Reply(to_message(error), message_id)]
        if isinstance(error, errors.RateLimited):
            self.refusals = self.refusals or Window(limit=REFUSALS, seconds=REFUSAL_SECONDS)
            if self.refusals.hit(now):
                effects.append(Close(CloseCode.RATE_LIMIT, "rate limit exceeded persistently"))
            elif error.close_code:
                effects.append(Close(error.close_code, error.message))
            return effects
        if not (error.retryable or isinstance(error, errors.ServiceError)):
            limits.charge(self.budgets, {POSTS: 1}, now)
        if isinstance(error, errors.BadMessage | errors.UnknownType):
            self.bad = self.bad or Window(limit=BAD_MESSAGES, seconds=BAD_SECONDS)
            if self.bad.hit(now):
                effects.append(Close(CloseCode.PROTOCOL_VIOLATION, "too many bad messages"))
        elif error.close_code and self.principal is None:  # a failed renewal ends nothing
            effects.append(Close(error.close_code, error.message))
        return effects

    def timers(self, now: float) -> tuple[Sequence[Reply | Close], float]:
        """Return the effects that are due, and when to ask again (`inf`: not before another change)."""
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
        # A short-lived token is to be renewed half-way through its life, not as soon as it arrives.
        warning = self.expires - min(self.expiring_seconds, self.life / 2)
        if not self.warned and now >= warning:
            self.warned = True
            return [Reply(m.Expiring(expires_at=rfc3339(self.principal.expires_at)))], self.expires
        return [], self.expires if self.warned else warning


def to_message(error: BrokerError) -> m.Error:
    return m.Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after_ms=msgspec.UNSET if error.retry_after is None else ceil(error.retry_after * 1000),
        status=msgspec.UNSET if error.status is None else error.status,
        paths=dict(error.paths) if error.paths else msgspec.UNSET,
        conflict=msgspec.UNSET
        if error.conflict is None
        else [
            m.Contradiction(channel=each.channel, revision=each.revision, paths=dict(each.paths))
            for each in error.conflict
        ],
    )
