"""A WebSocket client on Trio that keeps its subscriptions over cuts and restarts.

::

    session = Session(url="wss://events.example.com/ws", token=token)
    await session.subscribe("orders.>", "me.>", last=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        async for item in session:
            match item:
                case Event():
                    print(item.channel, item.value)
                case Gap():
                    ...  # events of item.channels are gone: load their state anew

It is the protocol page's section 3 from the client's side. What arrives is handed over one item at a
time; while nobody takes it, nothing more is read and the broker notices.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from broker.client.engine import READ_AHEAD, SUBPROTOCOL, UNHEARD, Backoff, Engine
from broker.client.items import Item, Lost, Reconnecting, SessionEnded
from broker.client.link import use_link
from broker.errors import CloseCode, Unavailable

if TYPE_CHECKING:
    import ssl

    from broker.client.engine import Lag
    from broker.client.items import Published
    from broker.client.outbox import Pending

T = TypeVar("T")
Token: TypeAlias = str | Callable[[], Awaitable[str]]


@attrs.define(eq=False, kw_only=True)
class Session:
    """One client. `token` may be a function, which is then asked for each connection and before one expires.

    Where it raises `OSError` or `Unavailable` it is asked again later. `tenant` is for monitoring tokens.
    `run` connects, again and again; iterate to receive. Iteration raises `SessionEnded` when reconnecting
    cannot help.
    """

    url: str
    token: Token = attrs.field(repr=False)
    tenant: str | None = None
    ssl_context: ssl.SSLContext | None = None
    backoff: Backoff = attrs.field(factory=Backoff)
    engine: Engine = attrs.field(init=False, repr=False)
    changed: trio.Event = attrs.field(factory=trio.Event, repr=False)  # there may be something to send
    expiring: trio.Event = attrs.field(factory=trio.Event, repr=False)
    taken: trio.Event = attrs.field(factory=trio.Event, repr=False)
    taker: trio.lowlevel.Task | None = attrs.field(default=None, repr=False)  # iterates
    taker_waits: bool = False  # for an answer, instead of taking what comes before it
    channels: tuple[trio.MemorySendChannel[Item], trio.MemoryReceiveChannel[Item]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Item](inf), repr=False
    )

    def __attrs_post_init__(self) -> None:
        renewable = not isinstance(self.token, str)
        self.engine = Engine(url=self.url, tenant=self.tenant, renewable=renewable, backoff=self.backoff)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps a connection until it is cancelled or the broker ends it. Reports started at once."""
        task_status.started()
        ended: SessionEnded | None = None
        try:
            while not isinstance(end := await self.connect(), SessionEnded):
                after = self.engine.wait(end)
                self.channels[0].send_nowait(Reconnecting(reason=end.reason, after=after))
                await trio.sleep(after)
            ended = end
        finally:
            self.engine.end(ended)
            self.channels[0].close()

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Item:
        self.taker = trio.lowlevel.current_task()
        try:
            item = await self.channels[1].receive()
        except trio.EndOfChannel:
            if self.engine.ended is not None:
                raise self.engine.ended from None
            raise StopAsyncIteration from None
        self.taken.set()
        return item

    async def subscribe(
        self,
        *channels: str,
        position: str | None = None,
        since: str | None = None,
        last: int | None = None,
        snapshot: bool = False,
        durable: str | None = None,
        lag: Lag | None = None,
    ) -> str:
        """Asks for channels and patterns, now and after each cut; says the `messageId` of the reply.

        At most one start: after a `position`, from a time (`since`, RFC 3339), from the newest `last`
        events, or the newest of each channel (`snapshot`). Else from now. Under a `durable` name it starts
        after what was last acknowledged under it, and elsewhere only the first time.
        """
        starts = {"position": position, "since": since, "last": last, "snapshot": snapshot}
        message_id = self.engine.subscribe(channels, starts, lag, durable)
        await self.say()
        return message_id

    async def unsubscribe(self, *channels: str) -> None:
        """Ends subscriptions; `unsubscribed` is the last that is heard of them."""
        self.engine.unsubscribe(channels)
        await self.say()

    async def publish(self, channel: str, event: Any, *, event_id: str | None = None) -> Published:
        """Publishes an event, and returns once the broker has said where it is.

        `event` is any JSON value, or JSON as bytes; b"" is a tombstone. Without a connection it waits for
        one; after a cut, and when the broker has no time for it, it is sent again, with the same id (one is
        made up where none is given), so that it is stored once. Those that are under way at the same time
        may be stored in any order. When this is cancelled before it was sent, it will not be.

        Raises the `BrokerError` that the broker answers; `Unavailable` when it cannot be known any more
        whether it was stored, or a live event sent; `SessionEnded`.
        """
        done = trio.Event()
        promise = self.engine.publish(channel, event, event_id, done.set)
        return await self.answer(promise, done)

    async def acknowledge(self, durable: str, position: str) -> None:
        """Says that everything up to `position` has been dealt with, and returns once that is stored.

        That takes up to a second. Raises as `publish` does.
        """
        done = trio.Event()
        promise = self.engine.acknowledge(durable, position, done.set)
        await self.answer(promise, done)

    async def answer(self, promise: Pending[T], done: trio.Event) -> T:
        """Waits for what was promised. It comes behind events: those are read on meanwhile."""
        mine = trio.lowlevel.current_task() is self.taker
        self.taker_waits |= mine
        self.changed.set()
        self.taken.set()
        try:
            await done.wait()
        finally:
            self.engine.outbox.withdraw(promise)
            if mine:
                self.taker_waits = False
        return promise.result()

    def acknowledge_nowait(self, durable: str, position: str) -> None:
        """The same without waiting. Of many only the newest is sent; after a cut it is sent again."""
        self.engine.acknowledge(durable, position, None)
        self.changed.set()

    async def say(self) -> None:
        self.changed.set()
        await trio.lowlevel.checkpoint()

    # --- one connection ----------------------------------------------------------------------------

    async def connect(self) -> Lost | SessionEnded:
        """One connection from the handshake to its end."""
        try:
            token = await self.current_token()
            self.engine.begin()
            self.expiring = trio.Event()
            return await use_link(
                self.engine.address(),
                self.converse,
                subprotocol=SUBPROTOCOL,
                headers=[(b"Authorization", b"Bearer " + token.encode())],
                ssl_context=self.ssl_context,
            )
        except ConnectionRejected as rejected:
            after = dict(rejected.headers or ()).get(b"retry-after", b"").decode("latin-1")
            return self.engine.refused(rejected.status_code, after, rejected.body or b"")
        except (OSError, Unavailable) as error:
            return Lost(str(error))

    async def current_token(self) -> str:
        return self.token if isinstance(self.token, str) else await self.token()

    async def converse(self, link: WebSocketConnection) -> Lost | SessionEnded:
        """Reads and writes until the connection is lost, or should be left."""
        ends: list[Lost | SessionEnded] = []

        async def until_its_end(part: Callable[[], Awaitable[Lost | SessionEnded]]) -> None:
            ends.append(await part())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for part in (partial(self.read, link), partial(self.write, link), self.renew):
                nursery.start_soon(until_its_end, part)
        return ends[0]

    async def read(self, link: WebSocketConnection) -> Lost | SessionEnded:
        while True:
            self.engine.listening(trio.current_time())
            self.changed.set()
            try:
                text = await link.get_message()
                item = self.engine.receive(text, trio.current_time())
            except ConnectionClosed as closed:
                return self.closed(closed)
            except SessionEnded as ended:
                return ended
            self.changed.set()
            if self.engine.expiring:
                self.expiring.set()
            if item is not None:
                await self.hand_over(item)

    async def hand_over(self, item: Item) -> None:
        """Waits until it is taken, where somebody must be there to take it."""
        send, receive = self.channels
        free = self.engine.is_free(item)
        if free and receive.statistics().current_buffer_used >= UNHEARD:
            return
        send.send_nowait(item)
        while not free and receive.statistics().current_buffer_used > self.ahead():
            self.taken = trio.Event()
            await self.taken.wait()

    def ahead(self) -> float:
        """How many items may wait to be taken while the next ones are read."""
        return inf if self.taker_waits else READ_AHEAD if self.engine.outbox.awaited else 0

    async def write(self, link: WebSocketConnection) -> Lost | SessionEnded:
        while True:
            self.changed = trio.Event()
            now = trio.current_time()
            if lost := self.engine.overdue(now):
                return lost
            try:
                for text in self.engine.outgoing(now):
                    await link.send_message(text)
            except ConnectionClosed as closed:
                return self.closed(closed)
            with trio.move_on_at(self.engine.due()):
                await self.changed.wait()

    async def renew(self) -> Lost | SessionEnded:
        """Presents another token when one is wanted. Until there is one the old one holds."""
        while True:
            await self.expiring.wait()
            for attempt in itertools.count():
                try:
                    token = await self.current_token()
                    break
                except (OSError, Unavailable):
                    await trio.sleep(self.backoff.delay(attempt))
            self.expiring = trio.Event()
            self.engine.renewed(token)
            self.changed.set()

    def closed(self, closed: ConnectionClosed) -> Lost | SessionEnded:
        code, said = int(CloseCode.GOING_AWAY), None
        if closed.reason is not None:
            code, said = closed.reason.code, closed.reason.reason
        return self.engine.closed(code, said, trio.current_time())
