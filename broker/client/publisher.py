"""A publisher on asyncio, for services: an event is published once the stream has acknowledged it.

::

    async with await Publisher.connect("nats://127.0.0.1:4222") as publisher:
        await publisher.publish("acme", "orders.7", {"state": "new"})

Any NATS client can do the same; this one first refuses what would become a dead letter.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client

from broker import subjects
from broker.client.checks import event_json, text_fault
from broker.client.items import UnknownOutcome
from broker.config import Limits
from broker.errors import BadMessage, InvalidChannel, TooLarge, Unavailable
from broker.subjects import Names
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_BYTES = Limits().event_bytes
IN_FLIGHT = 256  # unacknowledged publishes; nats-server stores them in order
CONNECT_SECONDS = 5
ACK_SECONDS = 5
ATTEMPTS = 3
RETRY_SECONDS = 60.0  # from the first attempt; the default duplicate window of streams is 120 s
ABANDONED_SECONDS = 3600
POLL_SECONDS = 0.05
MAX_ID_BYTES = 128

log = structlog.get_logger("broker.publisher")


@attrs.frozen(kw_only=True)
class Stored:
    """Where the event is stored; for a `duplicate`, where the first copy is."""

    sequence: int
    duplicate: bool


@attrs.define(eq=False)
class Publisher:
    """One connection to NATS. Many tasks may publish concurrently; those beyond the bound wait."""

    client: Client
    names: Names
    event_bytes: int
    slots: asyncio.Semaphore
    flushing: set[asyncio.Future[None]] = attrs.field(factory=set)

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
        """Connect to one of `servers` ("nats://[user:password@]host:port").

        `event_bytes` is the broker's limit of that name. `login` is passed on to nats-py: `user`,
        `password`, `user_credentials`, `nkeys_seed`, `tls`. With `reconnect` a lost connection is
        reopened for ever. Raises `Unavailable` when NATS cannot be reached now.
        """
        client = Client()
        last: deque[Exception] = deque(maxlen=1)

        async def note(error: Exception) -> None:
            last.append(error)
            log.debug("nats_error", error=str(error))  # raised to the publishing task instead

        try:
            # The first attempt must fail visibly, so it is not repeated.
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
        """Publish an event, and return once it is stored; a live one is only handed to NATS.

        `event` is any JSON value, or JSON as bytes, which is passed on untouched; `TOMBSTONE` (b"") removes
        the channel from snapshots. The tenant "_all" is every tenant. A retry with the same `event_id` stores
        nothing twice within the stream's duplicate window (the broker's is `stream.duplicate_window`).

        Raises, before anything is sent, `TypeError` or `ValueError` for what is not JSON, `InvalidChannel`,
        `BadMessage` and `TooLarge`; `Unavailable` when nothing was sent; `UnknownOutcome` when the answer
        was lost: within the window a retry with its `event_id` shows whether a stored event arrived. For a
        live one there is no way to know.
        """
        check_tenant(tenant)
        if not isinstance(channel, str):
            raise TypeError(f"channel: a string is wanted, not {type(channel).__name__}")
        subject = self.names.subject(tenant, subjects.parse_channel(channel))
        body = event if isinstance(event, bytes) else event_json(event)
        check_body(tenant, body, min(self.event_bytes, self.client.max_payload))
        event_id = check_id(uuid.uuid4().hex if event_id is None else event_id)
        async with self.slots:
            if subjects.is_live(channel):
                await self.send(subject, body, event_id)
                return None
            return await self.store(subject, body, tenant, event_id)

    async def store(self, subject: str, body: bytes, tenant: str, event_id: str) -> Stored:
        stream, headers = self.client.jetstream(), {"Nats-Msg-Id": f"{tenant}:{event_id}"}
        begun, failure = clocks(), None
        for _ in range(ATTEMPTS):
            if not await self.connected():
                break
            try:
                ack = await stream.publish(subject, body, timeout=ACK_SECONDS, headers=headers)
            except nats.js.errors.NoStreamResponseError as error:
                if failure is None:
                    said = f"no stream takes {subject}: is a broker running on this NATS?"
                    raise Unavailable(said) from None
                failure = error
                break
            except nats.js.errors.APIError as error:  # an answer of the stream: this attempt stored nothing
                if failure is None:
                    raise Unavailable(f"{subject} was not stored: {error.description}") from error
                failure = error
            except (nats.errors.Error, OSError) as error:
                failure = error  # perhaps stored: the same id makes a retry harmless
            else:
                return Stored(sequence=ack.seq, duplicate=bool(ack.duplicate))
            if elapsed(begun) > RETRY_SECONDS:
                break
        if failure is None:
            raise Unavailable(f"{subject} was not sent: there is no connection to NATS")
        reason = str(failure) or type(failure).__name__
        raise UnknownOutcome(f"{subject} was not acknowledged: {reason}", event_id=event_id) from failure

    async def send(self, subject: str, body: bytes, event_id: str) -> None:
        if not await self.connected():
            raise Unavailable(f"{subject} was not sent: there is no connection to NATS")
        try:
            await self.client.publish(subject, body)
            await self.flush()
        except (nats.errors.Error, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UnknownOutcome(f"{subject}: {reason}", event_id=event_id) from error

    async def flush(self) -> None:
        """Return once the server has taken what was sent. Raises `nats.errors.TimeoutError`.

        In nats-py 2.16 a PONG for an abandoned flush ends the reading task for good, while `is_connected`
        stays true. So a flush is never cancelled but left to finish by itself.
        """
        flushing = asyncio.ensure_future(self.client.flush(timeout=ABANDONED_SECONDS))
        self.flushing.add(flushing)
        flushing.add_done_callback(self.flushed)
        if not (await asyncio.wait([flushing], timeout=ACK_SECONDS))[0]:
            raise nats.errors.TimeoutError
        flushing.result()

    def flushed(self, flushing: asyncio.Future[None]) -> None:
        self.flushing.discard(flushing)
        if not flushing.cancelled():
            flushing.exception()  # retrieved, also when nobody waits any more

    async def connected(self) -> bool:
        """Return whether there is a connection, after waiting a moment if need be.

        Without one nats-py would buffer the event, and send it whenever it has reconnected.
        """
        waited = time.monotonic()
        while not self.client.is_connected:
            if self.client.is_closed or time.monotonic() - waited > ACK_SECONDS:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def close(self) -> None:
        """Close the connection. Everything published before has its answer already."""
        await self.client.close()
        for each in [*self.flushing]:
            each.cancel()

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


def elapsed(since: tuple[float, float]) -> float:
    """Return the elapsed time by the clock that shows more: one stops while a machine sleeps, one can be
    set.
    """
    return max(now - then for now, then in zip(clocks(), since, strict=True))


def check_tenant(tenant: str) -> None:
    if not isinstance(tenant, str):
        raise TypeError(f"tenant: a string is wanted, not {type(tenant).__name__}")
    if tenant != subjects.BROADCAST and not subjects.is_tenant(tenant):
        raise InvalidChannel(
            f"{subjects.shown(tenant)} is not a tenant name: 1 to 64 of A-Z a-z 0-9 _ - and no _ first"
        )


def check_body(tenant: str, body: bytes, limit: int) -> None:
    fault = events.fault(tenant, body, limit)
    if fault is not None:
        raise (TooLarge if fault.reason == "too_large" else BadMessage)(
            f"the event is refused: {fault.detail}"
        )


def check_id(event_id: str) -> str:
    if not isinstance(event_id, str):
        raise TypeError(f"event_id: a string is wanted, not {type(event_id).__name__}")
    fits = text_fault(event_id) is None and 1 <= len(event_id.encode()) <= MAX_ID_BYTES
    if not fits or not event_id.isprintable() or event_id != event_id.strip():
        raise BadMessage(
            f"{subjects.shown(event_id)} is not an id: at most {MAX_ID_BYTES} bytes, all visible"
        )
    return event_id
