"""The request `publish`, over a connection and without one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import attrs
import msgspec
from msgspec import UNSET

from broker import limits, subjects
from broker.errors import BadMessage, Forbidden, TooLarge
from broker.features.port import Feature, signed
from broker.session.requests import Page, Request
from broker.wire import events, traces
from broker.wire import messages as m
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus
    from broker.session.requests import Asker, Caller, Requests, Terms
    from broker.subjects import Names
    from broker.tracing import Tracing

MAX_ID_BYTES = 64


@attrs.frozen(kw_only=True)
class Send:
    """Publish `body` to `channel`; `echo`: the connection gets it too. `traceparent` is well-formed."""

    channel: str
    body: bytes
    id: str | None
    echo: bool
    traceparent: str | None = None


@attrs.define(eq=False)
class Publishing(Feature):
    """Publishes events of clients. `incarnation` returns that of the current stream."""

    bus: Bus
    names: Names
    incarnation: Callable[[], str]
    tracing: Tracing | None = None
    adds = ("echo",)

    def requests(self) -> Requests:
        return (
            Request(
                message=m.Publish,
                check=check,
                perform=self.perform,
                replies=(m.Published,),
                costs=(limits.PUBLISHES, limits.POSTS),
                page=Page(
                    path="/publish",
                    about="Publish without a connection.",
                    example='{"channel": …, "event": …, "id": …}',
                    status=202,
                    perform=self.publish,
                    without=("echo",),
                ),
            ),
        )

    async def perform(self, caller: Caller, wish: Send, _: str | None) -> m.Published:
        return await self.publish(caller, wish)

    async def publish(self, asker: Asker, wish: Send) -> m.Published:
        """Pass a client's event to NATS; return the reply. Raise `Unavailable`."""
        principal = asker.attach()
        headers = signed(asker, principal, wish.traceparent)
        if wish.id is not None:
            headers[events.ID] = subjects.encode_token(wish.id)
        if not wish.echo:
            headers[events.ECHO] = "false"
        subject = self.names.subject(principal.tenant, wish.channel)
        tracing = self.tracing
        with (
            tracing.publishing(headers, tenant=principal.tenant, channel=wish.channel)
            if tracing is not None
            else nullcontext()
        ):
            given = UNSET if wish.id is None else wish.id
            if subjects.is_live(wish.channel):
                await self.bus.publish_live(subject, wish.body, headers=headers)
                return m.Published(id=given)
            message_id = None
            if wish.id is not None:
                # The stream compares ids over all tenants, users and channels. No part contains a blank, and
                # services begin theirs with a tenant, so that no client can use the id of another.
                token = subjects.encode_token(wish.id)
                message_id = f"_client {principal.tenant} {principal.encoded_user} {wish.channel} {token}"
            ack = await self.bus.publish(subject, wish.body, headers=headers, message_id=message_id)
            position = Position(self.incarnation(), ack.sequence)
            return m.Published(id=given, position=str(position), duplicate=ack.duplicate or UNSET)


def check(terms: Terms, message: m.Publish) -> Send:
    """Return the event to publish. Raise if the client may not publish it, or if it is not an event."""
    principal = terms.client()
    channel = subjects.parse_channel(subjects.expand_me(message.channel, principal.encoded_user))
    principal.check_publish(channel)
    if message.id is not None and not 1 <= len(message.id.encode()) <= MAX_ID_BYTES:
        raise BadMessage(f"payload.id: a string of 1 to {MAX_ID_BYTES} bytes")
    if events.has_huge_integer(message.event):
        raise BadMessage("payload.event: an integer of more than 64 bits; send it as a string")
    body = msgspec.json.encode(message.event)
    if fault := events.fault(principal.tenant, body, terms.limits.publish_bytes):
        sentence = f"payload.event: {fault.detail}"
        if fault.reason == "too_large":
            raise TooLarge(f"{sentence} (limits.publish_bytes)")
        if fault.reason == "tenant_mismatch":
            raise Forbidden(sentence)
        raise BadMessage(sentence)
    return Send(
        channel=channel,
        body=body,
        id=message.id,
        echo=message.echo is not False,
        traceparent=traces.accepted(message.traceparent),
    )
