"""The request `acknowledge`, over a connection and without one, and the cursors that connections hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from broker.errors import Conflict, InvalidPosition, NotSubscribed
from broker.features.port import Feature
from broker.session.requests import Page, Request, as_it_is
from broker.wire import durables, positions
from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from broker.config import Config
    from broker.features.durable.cursors import Cursor, Cursors
    from broker.permissions import Principal
    from broker.session.requests import Asker, Caller, Requests
    from broker.wire.positions import Position


@attrs.define(eq=False)
class Durable:
    """A durable name held by a connection: its cursor, and the subscriptions that began there.

    Until those have begun `patterns` is empty.
    """

    cursor: Cursor
    patterns: set[str] = attrs.Factory(set)


class Durables(Feature):
    """Holds the cursors of connections, and raises them. `head` returns how far this broker has read."""

    def __init__(self, cursors: Cursors, head: Callable[[], Position]) -> None:
        self.cursors = cursors
        self.head = head
        self.held: dict[Caller, dict[str, Durable]] = {}  # only connections that hold one

    def requests(self) -> Requests:
        return (
            Request(
                message=m.Acknowledge,
                check=as_it_is,
                perform=self.acknowledge,
                replies=(m.Acknowledged,),
                page=Page(
                    path="/acknowledge",
                    about="Acknowledge without a connection, for clients that use SSE or long polling with a "
                    "durable name.",
                    example='{"durable": …, "position": …}',
                    status=200,
                    perform=self.acknowledge_alone,
                ),
            ),
        )

    # --- which connection holds what ----------------------------------------------------------------

    def of(self, caller: Caller) -> Mapping[str, Durable]:
        """Return the durable names of a connection."""
        return self.held.get(caller, {})

    def check_free(self, caller: Caller, name: str) -> None:
        """Raise `Conflict` if a subscription of the connection has this name."""
        if name in self.of(caller):
            raise Conflict(f"payload.durable: {name} is held by another subscribe of this connection")

    async def hold(
        self, caller: Caller, principal: Principal, name: str, begin: Callable[[], Awaitable[Position]]
    ) -> Position:
        """Take a name for a connection; return its position. `begin` returns the position of a new cursor.

        Raise `Unavailable` and `TooManySubscriptions`.
        """
        cursor = await self.cursors.hold(principal.tenant, principal.user, name, begin)
        self.held.setdefault(caller, {})[name] = Durable(cursor)
        return cursor.position

    def release(self, caller: Caller, name: str) -> None:
        """Give back a name that was taken in vain, unless the connection's end has done so."""
        durable = self.held.get(caller, {}).pop(name, None)
        if durable is not None:
            self.cursors.release(durable.cursor)
        if caller in self.held and not self.held[caller]:
            del self.held[caller]

    def begin(self, caller: Caller, name: str, patterns: set[str]) -> None:
        """Record which subscriptions began under a name, unless the connection has ended meanwhile."""
        if durable := self.of(caller).get(name):
            durable.patterns = patterns

    def left(self, caller: Caller) -> None:
        """Give back the names without a subscription."""
        if caller not in self.held:
            return
        standing = caller.flow.subscriptions().keys()
        for name, durable in list(self.of(caller).items()):
            if durable.patterns and not durable.patterns & standing:
                self.release(caller, name)

    def detach(self, caller: Caller) -> None:
        for durable in self.held.pop(caller, {}).values():
            self.cursors.release(durable.cursor)

    # --- acknowledgements ---------------------------------------------------------------------------

    async def acknowledge(self, caller: Caller, message: m.Acknowledge, message_id: str | None) -> None:
        """Raise a cursor of the connection; with a message id, reply once that is stored.

        Raise `NotSubscribed` and `InvalidPosition`.
        """
        durable = self.of(caller).get(message.durable)
        if durable is None:
            raise NotSubscribed("payload.durable: no subscription of this connection has this name")
        position = positions.parse(message.position)
        events, sent = caller.flow.log, caller.flow.sent(durable.patterns)
        if events is None or position.incarnation != events.incarnation or position.sequence > sent:
            raise InvalidPosition("payload.position: above what was sent here for this durable subscription")
        durable.cursor.raise_to(position)
        if message_id is not None:
            reply = m.Acknowledged(durable=message.durable, position=str(position))
            durable.cursor.waiting.append((position, partial(caller.tell, reply, message_id)))
            durable.cursor.notify()

    async def acknowledge_alone(self, asker: Asker, message: m.Acknowledge) -> m.Acknowledged:
        """Raise a user's cursor, or create it; return its stored position.

        What was sent to the user is unknown here, so the end of the stream is the limit. Connections of this
        broker share the cursor; other brokers read it whenever a subscription begins there. Raise
        `InvalidPosition`, `TooManySubscriptions` (durable names) and `Unavailable`.
        """
        principal = asker.attach()
        durables.check_name(message.durable)
        position = positions.parse(message.position)
        await self.check_given(position)

        async def begin() -> Position:
            return position

        cursor = await self.cursors.hold(principal.tenant, principal.user, message.durable, begin)
        try:
            await self.cursors.store(cursor, position)
            return m.Acknowledged(durable=message.durable, position=str(cursor.stored))
        finally:
            self.cursors.release(cursor)

    async def check_given(self, position: Position) -> None:
        """Raise `InvalidPosition` for a position that no broker, even one ahead of this, can have sent."""
        head = self.head()
        if position.incarnation == head.incarnation and position.sequence <= head.sequence:
            return
        state = await self.cursors.bus.state()
        if position.incarnation != state.incarnation:
            raise InvalidPosition("payload.position: belongs to another stream, not to the current one")
        if position.sequence > state.last:
            raise InvalidPosition("payload.position: above the newest event")

    # --- the background -----------------------------------------------------------------------------

    async def run(self) -> None:
        await self.cursors.run()

    async def flush(self) -> None:
        await self.cursors.flush()

    def settings_changed(self, config: Config) -> None:
        self.cursors.per_user = config.limits.durables_per_user
