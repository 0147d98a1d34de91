"""A publisher on asyncio, for services: an event counts once the stream has acknowledged it.

::

    async with await Publisher.connect("nats://127.0.0.1:4222") as publisher:
        await publisher.publish("acme", "orders.7", {"state": "new"})

Any NATS client can do the same; this one checks first what the broker would turn into a dead letter.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client

from broker import subjects
from broker.config import Limits
from broker.errors import BadMessage, InvalidChannel, TooLarge, Unavailable
from broker.subjects import Names
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_BYTES = Limits().event_bytes
IN_FLIGHT = 256  # publications that wait for their acknowledgement; nats-server takes them in order
CONNECT_SECONDS = 5
ACK_SECONDS = 5
ATTEMPTS = 3
MAX_ID_BYTES = 128

log = structlog.get_logger("broker.publisher")


@attrs.frozen(kw_only=True)
class Stored:
    """Where the stream has the event; of a `duplicate` it is the place of the first copy."""

    sequence: int
    duplicate: bool


@attrs.define(eq=False)
class Publisher:
    """One connection to NATS. Many tasks may publish at a time; those over the bound wait."""

    client: Client
    names: Names
    event_bytes: int
    slots: asyncio.Semaphore

    @classmethod
    async def connect(
        cls,
        servers: str | Sequence[str],
        *,
        names: Names | None = None,
        event_bytes: int = EVENT_BYTES,
        in_flight: int = IN_FLIGHT,
        reconnect: bool = True,
        **login: Any,
    ) -> Publisher:
        """Connects to one of `servers` ("nats://[user:password@]host:port").

        `event_bytes` is the broker's limit of that name. `login` is passed on to nats-py: `user`,
        `password`, `user_credentials`, `nkeys_seed`, `tls`. With `reconnect` a lost connection is tried
        again for ever. Raises `Unavailable` when none can be had now.
        """
        client = Client()
        last: deque[Exception] = deque(maxlen=1)

        async def note(error: Exception) -> None:
            last.append(error)
            log.debug("nats_error", error=str(error))  # whoever publishes gets it as an exception

        try:
            # The first time there is nothing to keep: who starts us must hear that it fails.
            await client.connect(
                [servers] if isinstance(servers, str) else list(servers),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_SECONDS,
                error_cb=note,
                **login,
            )
        except (OSError, nats.errors.Error) as error:
            await client.close()
            reason = last[0] if last else error
            raise Unavailable(f"NATS cannot be reached: {reason or type(reason).__name__}") from error
        client.options.update(allow_reconnect=reconnect, max_reconnect_attempts=-1, reconnect_time_wait=1)
        return cls(client, names or Names(), event_bytes, asyncio.Semaphore(in_flight))

    async def publish(
        self, tenant: str, channel: str, event: Any, *, event_id: str | None = None
    ) -> Stored | None:
        """Stores an event, and returns once it is stored; a live channel's is only handed to NATS.

        `event` is any JSON value, or JSON as bytes, which is passed on untouched; b"" is a tombstone.
        The tenant "_all" is every tenant. A retry with the same `event_id` stores nothing twice within the
        stream's duplicate window. Raises `InvalidChannel`, `BadMessage`, `TooLarge`, or `Unavailable`, after
        which only a retry with the same `event_id` tells whether the event was stored.
        """
        subject = self.names.subject(check_tenant(tenant), subjects.parse_channel(channel))
        body = event if isinstance(event, bytes) else msgspec.json.encode(event)
        check_body(tenant, body, min(self.event_bytes, self.client.max_payload))
        async with self.slots:
            if subjects.is_live(channel):
                await self.send(subject, body)
                return None
            return await self.store(subject, body, f"{tenant}:{check_id(event_id or uuid.uuid4().hex)}")

    async def store(self, subject: str, body: bytes, message_id: str) -> Stored:
        stream = self.client.jetstream()
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                ack = await stream.publish(
                    subject, body, timeout=ACK_SECONDS, headers={"Nats-Msg-Id": message_id}
                )
            except nats.js.errors.NoStreamResponseError:
                raise Unavailable(f"no stream takes {subject}: is a broker running on this NATS?") from None
            except nats.errors.TimeoutError as error:
                failure = error  # perhaps stored, perhaps not: the same id makes another try harmless
            except nats.errors.Error as error:
                raise Unavailable(f"{subject} was not acknowledged: {error}") from error
            else:
                return Stored(sequence=ack.seq, duplicate=bool(ack.duplicate))
        raise Unavailable(f"{subject}: no acknowledgement within {ATTEMPTS * ACK_SECONDS:g} s") from failure

    async def send(self, subject: str, body: bytes) -> None:
        try:
            await self.client.publish(subject, body)
            await self.client.flush(timeout=ACK_SECONDS)
        except nats.errors.Error as error:
            raise Unavailable(f"{subject} was not sent: {error}") from error

    async def close(self) -> None:
        """Ends the connection. What was published before has its answer already."""
        await self.client.close()

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def check_tenant(tenant: str) -> str:
    if tenant != subjects.BROADCAST and not subjects.is_tenant(tenant):
        raise InvalidChannel(
            f"{subjects.shown(tenant)} is no tenant: 1 to 64 of A-Z a-z 0-9 _ - and no _ first"
        )
    return tenant


def check_body(tenant: str, body: bytes, limit: int) -> None:
    fault = events.fault(tenant, body, limit)
    if fault is not None:
        raise (TooLarge if fault.reason == "too_large" else BadMessage)(
            f"the event is refused: {fault.detail}"
        )


def check_id(event_id: str) -> str:
    if len(event_id.encode()) > MAX_ID_BYTES or not event_id.isprintable() or event_id != event_id.strip():
        raise BadMessage(f"{subjects.shown(event_id)} is no id: at most {MAX_ID_BYTES} bytes, all visible")
    return event_id
