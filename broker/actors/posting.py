"""A message without a connection, in a session that lives for that message alone."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from broker import limits
from broker.errors import BadMessage, BrokerError, Unavailable
from broker.session.requests import Call, Reply
from broker.session.session import Session
from broker.wire import messages as m

if TYPE_CHECKING:
    from broker.actors.services import Services
    from broker.flow.client import Who
    from broker.permissions import Principal

Answer: TypeAlias = "m.ServerMessage | m.Documents | m.Members"


@attrs.define(eq=False)
class Alone(Session):
    """A session of one message. Limits that are a connection's elsewhere are here its user's: the rate."""

    def admit(self, message: m.ClientMessage, now: float) -> None:
        if self.table[message.type].costs:
            super().admit(message, now)
        else:
            self.spend((limits.REQUESTS,), now)


@attrs.define(eq=False, repr=False)
class Posting:
    """One message of a client at `peer` that has no connection.

    Permissions, rates and refusals are those of a connection. It does not count towards the user's
    connections.
    """

    services: Services
    peer: str
    id: str = attrs.Factory(lambda: secrets.token_hex(8))
    session: Alone = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        services, budgets = self.services, self.services.budgets
        self.session = Alone(
            services.config.limits,
            trio.current_time(),
            services.config.auth.expiring_seconds,
            services.table,
            budgets=budgets.of_link(self.peer),
            hits=budgets.hits,
        )

    async def answer(self, message: bytes, *, token: str, tenant: str | None) -> Answer:
        """Return the reply to the client's message."""
        services, session = self.services, self.session
        try:
            principal = await services.verify(token, tenant)
            if reason := services.trouble():
                raise Unavailable(reason, retry_after=1.0)
            services.check(principal)
            session.principal = principal
            session.budgets = (*services.budgets.of_principal(principal), *session.budgets)
            effects = session.receive(message, trio.current_time())
            for effect in effects:
                if isinstance(effect, Call):
                    return await self.perform(effect)
        except BrokerError as error:
            effects = session.failed(error, None, trio.current_time())
        replies = [each.message for each in effects if isinstance(each, Reply)]
        return self.noted(next(each for each in replies if isinstance(each, m.Error)))

    async def perform(self, call: Call) -> Answer:
        page = call.request.page
        if page is None:
            raise BadMessage(f"type: {call.request.message.type} needs a connection")
        reply: Answer = await page.perform(self, call.wish)
        return reply

    def attach(self) -> Principal:
        return self.session.client()

    def noted(self, error: m.Error) -> m.Error:
        self.services.meters.errors[error.code] += 1
        for feature in self.services.features:
            feature.refused(self.who(), code=error.code, message=error.message, channel=None)
        return error

    def who(self) -> Who:
        principal = self.session.principal
        return {
            "connection": self.id,
            "peer": self.peer,
            "tenant": principal.tenant if principal else None,
            "user": principal.user if principal else None,
        }
