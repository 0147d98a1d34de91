"""The last step of a client's publish: what NATS is given."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from msgspec import UNSET

from broker import subjects
from broker.wire import messages, traces
from broker.wire.events import PUBLISHER
from broker.wire.positions import Position

if TYPE_CHECKING:
    from broker.actors.services import Services
    from broker.permissions import Principal
    from broker.wire.effects import Send


async def hand_in(
    services: Services, principal: Principal, wish: Send, *, connection: str
) -> messages.Published:
    """Gives NATS what a client publishes; what the client is told of it. Raises `Unavailable`."""
    headers = {PUBLISHER: principal.room, "Broker-Connection": connection}
    subject = services.names.subject(principal.tenant, wish.channel)
    if wish.traceparent is not None:
        headers[traces.PARENT] = wish.traceparent
    tracing = services.tracing
    with (
        tracing.publishing(headers, tenant=principal.tenant, channel=wish.channel)
        if tracing is not None
        else nullcontext()
    ):
        given = UNSET if wish.id is None else wish.id
        if subjects.is_live(wish.channel):
            await services.bus.publish_live(subject, wish.body, headers=headers)
            return messages.Published(id=given)
        message_id = None
        if wish.id is not None:
            # The stream compares ids over all tenants, users and channels. No part holds a blank, and
            # services begin theirs with a tenant, so that no client can take another's.
            token = subjects.encode_token(wish.id)
            message_id = f"_client {principal.tenant} {principal.room} {wish.channel} {token}"
        ack = await services.bus.publish(subject, wish.body, headers=headers, message_id=message_id)
        position = Position(services.intake.incarnation, ack.sequence)
        return messages.Published(id=given, position=str(position), duplicate=ack.duplicate or UNSET)
