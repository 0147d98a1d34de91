"""A publish without a connection around it: a session that lives for one message."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import attrs
import trio

from broker.actors.connection import REFUSALS
from broker.actors.publishing import hand_in
from broker.errors import BrokerError, Unavailable
from broker.wire.messages import Error
from broker.wire.session import Reply, Send, Session

if TYPE_CHECKING:
    from broker.actors.outlet import Who
    from broker.actors.services import Services
    from broker.permissions import Principal
    from broker.wire.messages import Published


@attrs.define(eq=False)
class Posting:
    """One `publish` of a client at `peer` that has no connection.

    Permissions, rates and refusals are those of a connection. It does not count as one of its user's
    connections, which may be as many as are allowed.
    """

    services: Services
    peer: str
    id: str = attrs.Factory(lambda: secrets.token_hex(8))
    principal: Principal | None = None

    async def publish(self, message: bytes, *, token: str, tenant: str | None) -> Published | Error:
        """What the client is told of its message."""
        services, budgets = self.services, self.services.budgets
        session = Session(
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
                if isinstance(effect, Send):
                    return await hand_in(services, principal, effect, connection=self.id)
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
