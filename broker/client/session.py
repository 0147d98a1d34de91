"""A WebSocket client on Trio that keeps its subscriptions over cuts and restarts.

::

    session = Session(url="wss://events.example.com/ws", token=token)
    await session.subscribe("orders.>", "me.>", last=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        async for item in session:
            ...

It is the protocol page's section 3 from the client's side. What arrives is handed over one item at a
time; while nobody takes it, nothing more is read and the broker notices.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlencode, urlsplit

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from broker.client.link import use_link
from broker.client.resume import Payload, Resume
from broker.errors import BrokerError, CloseCode

if TYPE_CHECKING:
    import ssl

Token: TypeAlias = str | Callable[[], Awaitable[str]]
Lag = Literal["replay", "latest", "drop", "close"]

SUBPROTOCOL = "broker.v1"
HEARTBEAT_SECONDS = 25.0  # until the broker says its own
TRY_AGAIN = (408, 425, 429)  # of the HTTP 4xx the ones that pass; all 5xx do

jitter = SystemRandom()


@attrs.frozen(kw_only=True)
class Event:
    """An event; `data` is its JSON as it came, "null" for a tombstone. `position` when it is stored."""

    channel: str
    data: bytes
    position: str | None
    publisher: dict[str, Any] | None
    catch_up: int | None

    @property
    def value(self) -> Any:
        """The decoded JSON."""
        return msgspec.json.decode(self.data)


@attrs.frozen(kw_only=True)
class Message:
    """Any other message of the broker."""

    type: str
    payload: Payload
    message_id: str | None


@attrs.frozen(kw_only=True)
class Reconnecting:
    """The connection is gone, and will be tried again after so many seconds."""

    reason: str
    after: float


Item: TypeAlias = Event | Message | Reconnecting


class SessionEnded(BrokerError):
    """The broker will not have us back before something changes.

    `closed_with` is the WebSocket close code, or `status` that of HTTP, as far as it came.
    """

    def __init__(self, message: str, *, closed_with: int | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.closed_with = closed_with
        self.status = status


@attrs.frozen
class Lost:
    """This connection is over, another may do: at the earliest after so many seconds."""

    reason: str
    after: float = 0.0


class Envelope(msgspec.Struct, rename={"message_id": "messageId"}):
    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    message_id: str | None = None


class Delivery(msgspec.Struct):
    channel: str
    event: msgspec.Raw
    position: str | None = None
    publisher: dict[str, Any] | None = None
    catch_up: int | None = None


@attrs.frozen(kw_only=True)
class Backoff:
    """Full jitter: the wait is anything from 0 to a bound that doubles from `first` to `most` seconds."""

    first: float = 0.5
    most: float = 20.0

    def delay(self, failures: int) -> float:
        return jitter.uniform(0, min(self.most, self.first * 2.0 ** min(failures, 30)))


@attrs.define(eq=False, kw_only=True)
class Session:
    """One client. `token` may be a function, which is then also asked when the token runs out.

    `tenant` is for monitoring tokens. `run` connects, again and again; iterate to receive. Iteration
    raises `SessionEnded` when reconnecting cannot help.
    """

    url: str = attrs.field(validator=attrs.validators.matches_re(r"wss?://[^/?#]+.*"))
    token: Token = attrs.field(repr=False)
    tenant: str | None = None
    ssl_context: ssl.SSLContext | None = None
    backoff: Backoff = Backoff()
    resume: Resume = attrs.field(factory=Resume)
    link: WebSocketConnection | None = None  # once it is authenticated
    heartbeat: float = HEARTBEAT_SECONDS
    failures: int = 0
    leave_at: float = math.inf  # when the broker asked us to go elsewhere
    retries: dict[str, float] = attrs.field(factory=dict)  # when a refused `subscribe` is sent again
    last_error: Payload = attrs.field(factory=dict)
    ended: SessionEnded | None = None
    channels: tuple[trio.MemorySendChannel[Item], trio.MemoryReceiveChannel[Item]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Item](0), repr=False
    )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps a connection until it is cancelled or the broker ends it. Reports started at once."""
        task_status.started()
        items = self.channels[0]
        async with items:
            while not isinstance(end := await self.connect(items), SessionEnded):
                after = max(end.after, self.backoff.delay(self.failures))
                self.failures += 1
                await items.send(Reconnecting(reason=end.reason, after=after))
                await trio.sleep(after)
            self.ended = end

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Item:
        try:
            return await self.channels[1].receive()
        except trio.EndOfChannel:
            if self.ended is not None:
                raise self.ended from None
            raise StopAsyncIteration from None

    async def subscribe(
        self,
        *channels: str,
        position: str | None = None,
        since: str | None = None,
        last: int | None = None,
        snapshot: bool = False,
        lag: Lag | None = None,
    ) -> str:
        """Asks for channels and patterns, now and after each cut; says the `messageId` of the reply.

        At most one start: after a `position`, from a time (`since`, RFC 3339), from the newest `last`
        events, or the newest of each channel (`snapshot`). Else from now.
        """
        starts = {"position": position, "since": since, "last": last, "snapshot": snapshot or None}
        start = {name: value for name, value in starts.items() if value is not None}
        if len(start) > 1:
            raise ValueError(f"a subscription has one start, not {' and '.join(start)}")
        message_id = self.resume.ask(channels, start, lag)
        await self.send("subscribe", self.resume.requests[message_id].payload, message_id)
        return message_id

    async def unsubscribe(self, *channels: str) -> None:
        """Ends subscriptions; `unsubscribed` is the last that is heard of them."""
        self.resume.forget(channels)
        self.resume.count += 1
        await self.send("unsubscribe", {"channel": list(channels)}, str(self.resume.count))

    async def send(self, kind: str, payload: Payload, message_id: str | None = None) -> None:
        """Sends a message when there is a connection. After a cut the subscriptions are sent anyway."""
        if self.link is not None:
            document = {"type": kind, "payload": payload}
            if message_id is not None:
                document["messageId"] = message_id
            with suppress(ConnectionClosed):  # the reading side hears of it too, with the reason
                await self.link.send_message(msgspec.json.encode(document).decode())

    # --- one connection ----------------------------------------------------------------------------

    async def connect(self, items: trio.MemorySendChannel[Item]) -> Lost | SessionEnded:
        """One connection from the handshake to its end."""
        token = self.token if isinstance(self.token, str) else await self.token()
        self.leave_at, self.last_error, self.retries = math.inf, {}, {}
        try:
            return await use_link(
                self.address(),
                partial(self.converse, items),
                subprotocol=SUBPROTOCOL,
                headers=[(b"Authorization", b"Bearer " + token.encode())],
                ssl_context=self.ssl_context,
            )
        except ConnectionRejected as rejected:
            return refused(rejected)
        except OSError as error:
            return Lost(str(error))

    def address(self) -> str:
        if self.tenant is None:
            return self.url
        return f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode({'tenant': self.tenant})}"

    async def converse(
        self, items: trio.MemorySendChannel[Item], link: WebSocketConnection
    ) -> Lost | SessionEnded:
        """Reads until the connection is lost, or should be left."""
        quiet_since, pinged = trio.current_time(), False
        try:
            while True:
                due = quiet_since + self.heartbeat / 2
                with trio.move_on_at(min(due, self.leave_at, *self.retries.values())) as waited:
                    text = await link.get_message()
                if not waited.cancelled_caught:
                    item = self.read(text)
                    await self.take(item, link)
                    await items.send(item)
                    quiet_since, pinged = trio.current_time(), False
                elif trio.current_time() >= self.leave_at:
                    return Lost("the broker is going down")
                elif trio.current_time() >= due:
                    if pinged:
                        return Lost(f"silent for {self.heartbeat:g} s")
                    quiet_since, pinged = trio.current_time(), True
                    await self.send("ping", {})
                await self.retry()
        except ConnectionClosed as closed:
            return self.closed(closed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return SessionEnded(f"{self.url} does not speak {SUBPROTOCOL}: {error}")
        finally:
            self.link = None

    async def retry(self) -> None:
        """Sends again what was refused for a time that is over."""
        for message_id in [key for key, at in self.retries.items() if trio.current_time() >= at]:
            del self.retries[message_id]
            if message_id in self.resume.requests:
                await self.send("subscribe", self.resume.requests[message_id].payload, message_id)

    def read(self, text: str | bytes) -> Event | Message:
        """The message in a frame, noted for the next connection."""
        envelope = msgspec.json.decode(text, type=Envelope)
        if envelope.type != "event":
            payload = msgspec.json.decode(envelope.payload, type=dict[str, Any])
            self.resume.received(envelope.type, payload, envelope.message_id)
            return Message(type=envelope.type, payload=payload, message_id=envelope.message_id)
        found = msgspec.json.decode(envelope.payload, type=Delivery)
        self.resume.received("event", {"position": found.position, "catch_up": found.catch_up}, None)
        return Event(
            channel=found.channel,
            data=bytes(found.event),
            position=found.position,
            publisher=found.publisher,
            catch_up=found.catch_up,
        )

    async def take(self, item: Event | Message, link: WebSocketConnection) -> None:
        """Does what a message asks of the client itself."""
        if isinstance(item, Event):
            return
        after = (item.payload.get("retry_after_ms") or item.payload.get("reconnect_after_ms") or 0) / 1000
        match item.type:
            case "connection.established":
                self.heartbeat = item.payload.get("heartbeat_seconds", HEARTBEAT_SECONDS)
            case "connection.authenticated" if self.link is None:
                self.link = link
                self.resume.again()
                for message_id, request in list(self.resume.requests.items()):
                    await self.send("subscribe", request.payload, message_id)
            case "connection.expiring" if not isinstance(self.token, str):
                await self.send("authenticate", {"token": await self.token()})
            case "connection.draining":
                self.leave_at = trio.current_time() + after
            case "subscribed":
                self.failures = 0
            case "error":
                self.last_error = item.payload
                if item.message_id in self.resume.requests:
                    self.retries[item.message_id] = trio.current_time() + after + self.backoff.delay(0)

    def closed(self, closed: ConnectionClosed) -> Lost | SessionEnded:
        """What a close code asks for. Codes of the broker's own follow an `error` that says more."""
        code = CloseCode.GOING_AWAY if closed.reason is None else closed.reason.code
        said = closed.reason and closed.reason.reason
        if code >= 4000:
            said = self.last_error.get("message", said)
        reason = f"closed with {int(code)}" + (f": {said}" if said else "")
        same_again = code == CloseCode.TOKEN_EXPIRED and isinstance(self.token, str)
        if 4500 <= code <= 4999 or same_again:
            return SessionEnded(reason, closed_with=code)
        if self.leave_at < math.inf:
            return Lost(reason, after=self.leave_at - trio.current_time())
        return Lost(reason, after=self.last_error.get("retry_after_ms", 0) / 1000)


def refused(rejected: ConnectionRejected) -> Lost | SessionEnded:
    """What an HTTP answer instead of the upgrade asks for."""
    status = rejected.status_code
    reason = f"refused with HTTP {status}{title(rejected.body)}"
    if 400 <= status < 500 and status not in TRY_AGAIN:
        return SessionEnded(reason, status=status)
    after = dict(rejected.headers).get(b"retry-after", b"")
    return Lost(reason, after=float(after) if after.isdigit() else 0.0)


def title(body: bytes | None) -> str:
    """What an `application/problem+json` body (RFC 9457) says, for a sentence."""
    try:
        problem = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    said = problem.get("detail") or problem.get("title")
    return f": {said}" if isinstance(said, str) else ""
