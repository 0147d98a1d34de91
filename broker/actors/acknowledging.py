"""An acknowledgement without a connection. Nobody knows what was sent, so the end of the stream bounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.errors import InvalidPosition
from broker.wire.messages import Acknowledged

if TYPE_CHECKING:
    from broker.actors.services import Services
    from broker.permissions import Principal
    from broker.wire.effects import Acknowledge
    from broker.wire.positions import Position


async def settle(services: Services, principal: Principal, wish: Acknowledge) -> Acknowledged:
    """Raises a user's cursor, or makes one; says where it stands in NATS then.

    Whoever holds the cursor here shares it, and other brokers read it whenever a subscription begins there.
    Raises `InvalidPosition`, `TooManySubscriptions` (durable names) and `Unavailable`.
    """
    await check(services, wish.position)

    async def begin() -> Position:
        return wish.position

    cursors = services.cursors
    cursor = await cursors.hold(principal.tenant, principal.user, wish.durable, begin)
    try:
        await cursors.store(cursor, wish.position)
        return Acknowledged(durable=wish.durable, position=str(cursor.stored))
    finally:
        cursors.release(cursor)


async def check(services: Services, position: Position) -> None:
    """Raises `InvalidPosition` for one that nobody was given; another broker may be ahead of this one."""
    intake = services.intake
    if position.incarnation == intake.incarnation and position.sequence <= intake.head:
        return
    state = await services.bus.state()
    if position.incarnation != state.incarnation:
        raise InvalidPosition("payload.position: of another stream; acknowledge what this one has sent")
    if position.sequence > state.last:
        raise InvalidPosition("payload.position: above the newest event")
