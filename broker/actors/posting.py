"""A message without a connection around it: a session that lives for that one."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from broker import limits
from broker.actors import acknowledging
from broker.actors.connection import REFUSALS
from broker.actors.publishing import hand_in
from broker.errors import BrokerError, Unavailable
from broker.wire import messages, positions
from broker.wire.effects import Acknowledge, Reply, Send
from broker.wire.messages import Acknowledged, Error, Published
from broker.wire.session import Session, check_name

if TYPE_CHECKING:
    from broker.actors.services import Services
    from broker.flow.client import Who
    from broker.permissions import Principal

Answer: TypeAlias = Published | Acknowledged | Error


@attrs.define(eq=False)
class Alone(Session):
    """A session of one message. What else is a connection's, is its user's: the rate, the durable names."""

    def admit(self, message: messages.ClientMessage, now: float) -> None:
        if isinstance(message, messages.Publish):
            super().admit(message, now)
        elif excess := limits.take(self.budgets, {limits.REQUESTS: 1}, now):
            raise self.limited(excess)

    def acknowledge(self, message: messages.Acknowledge, message_id: str | None) -> Acknowledge:
        check_name(message.durable)
        position = positions.parse(message.position)
        return Acknowledge(durable=message.durable, position=position, message_id=message_id)


@attrs.define(eq=False)
class Posting:
    """One `publish` or `acknowledge` of a client at `peer` that has no connection.

    Permissions, rates and refusals are those of a connection. It does not count as one of its user's
    connections, which may be as many as are allowed.
    """

    services: Services
    peer: str
    id: str = attrs.Factory(lambda: secrets.token_hex(8))
    principal: Principal | None = None

    async def answer(self, message: bytes, *, token: str, tenant: str | None) -> Answer:
        """What the client is told of its message."""
        services, budgets = self.services, self.services.budgets
        session = Alone(
            services.config.limits,
            trio.current_time(),
            services.config.auth.expiring_seconds,
            budgets=budgets.of_link(self.peer),
            hits=budgets.hits,
        )
        try:
            principal = await services.verify(token, tenant)
            if reason := services.control.not_ready():
                raise Unavailable(reason, retry_after=1.0)
            services.check(principal)
            self.principal = session.principal = principal
            session.budgets = (*budgets.of_principal(principal), *session.budgets)
            effects = session.receive(message, trio.current_time())
            for effect in effects:
                match effect:
                    case Send():
                        return await hand_in(services, principal, effect, connection=self.id)
                    case Acknowledge():
                        return await acknowledging.settle(services, principal, effect)
        except BrokerError as error:
            effects = session.failed(error, None, trio.current_time())
        replies = [each.message for each in effects if isinstance(each, Reply)]
        return self.noted(next(each for each in replies if isinstance(each, Error)))

    def noted(self, error: Error) -> Error:
        self.services.meters.errors[error.code] += 1
        if error.code in REFUSALS:
            self.services.audit.note_refusal(code=error.code, message=error.message, **self.who())
        return error

    def who(self) -> Who:
        principal = self.principal
        return {
            "connection": self.id,
            "peer": self.peer,
            "tenant": principal.tenant if principal else None,
            "user": principal.user if principal else None,
        }
