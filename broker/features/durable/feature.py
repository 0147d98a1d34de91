"""The request `acknowledge`, with a connection and without, and the cursors that each connection holds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

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
    from broker.session.requests import Asker, Caller
    from broker.wire.positions import Position


@attrs.define(eq=False)
class Durable:
    """What a connection has under a durable name: the cursor, and the subscriptions that began there.

    Until those stand there are none.
    """

    cursor: Cursor
    patterns: set[str] = attrs.Factory(set)


class Durables(Feature):
    """Keeps the cursors of connections, and raises them. `head` returns how far this broker has read."""

    def __init__(self, cursors: Cursors, head: Callable[[], Position]) -> None:
        self.cursors = cursors
        self.head = head
        self.held: dict[Caller, dict[str, Durable]] = {}  # of connections that have any

    def requests(self) -> tuple[Request[Any, Any], ...]:
        return (
            Request(
                message=m.Acknowledge,
                check=as_it_is,
                perform=self.acknowledge,
                replies=(m.Acknowledged,),
                page=Page(
                    path="/acknowledge",
                    about="An acknowledgement without a connection, for clients that listen or poll by a "
                    "durable name.",
                    example='{"durable": …, "position": …}',
                    status=200,
                    perform=self.acknowledge_alone,
                ),
            ),
        )

    # --- which connection holds what ----------------------------------------------------------------

    def of(self, caller: Caller) -> Mapping[str, Durable]:
        """Return what a connection has under its durable names."""
        return self.held.get(caller, {})

    async def hold(
        self, caller: Caller, principal: Principal, name: str, begin: Callable[[], Awaitable[Position]]
    ) -> Position:
        """Take a name for a connection; return where it stands. `begin` says where a new one is to.

        Raise `Conflict`, `Unavailable` and `TooManySubscriptions`.
        """
        if name in self.of(caller):
            raise Conflict(f"payload.durable: {name} is held by another subscribe of this connection")
        cursor = await self.cursors.hold(principal.tenant, principal.user, name, begin)
        self.held.setdefault(caller, {})[name] = Durable(cursor)
        return cursor.position

    def release(self, caller: Caller, name: str) -> None:
        """Give back a name that was taken for nothing, unless the connection's end has done so."""
        durable = self.held.get(caller, {}).pop(name, None)
        if durable is not None:
            self.cursors.release(durable.cursor)
        if caller in self.held and not self.held[caller]:
            del self.held[caller]

    def begin(self, caller: Caller, name: str, patterns: set[str]) -> None:
        """Note which subscriptions stand under a name."""
        self.held[caller][name].patterns = patterns

    def left(self, caller: Caller) -> None:
        """Give back the names under which no subscription is left."""
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
        """Raise the cursor that the connection holds; with an id the reply follows once that is stored.

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
        """Raise a user's cursor, or make one; return where it stands in NATS then.

        Nobody knows what was sent, so the end of the stream bounds it. Whoever holds the cursor here shares
        it, and other brokers read it whenever a subscription begins there. Raise `InvalidPosition`,
        `TooManySubscriptions` (durable names) and `Unavailable`.
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
        """Raise `InvalidPosition` for one that nobody was given; another broker may be ahead of this one."""
        head = self.head()
        if position.incarnation == head.incarnation and position.sequence <= head.sequence:
            return
        state = await self.cursors.bus.state()
        if position.incarnation != state.incarnation:
            raise InvalidPosition("payload.position: of another stream; acknowledge what this one has sent")
        if position.sequence > state.last:
            raise InvalidPosition("payload.position: above the newest event")

    # --- the background -----------------------------------------------------------------------------

    async def run(self) -> None:
        await self.cursors.run()

    async def flush(self) -> None:
        await self.cursors.flush()

    def settings_changed(self, config: Config) -> None:
        self.cursors.per_user = config.limits.durables_per_user
