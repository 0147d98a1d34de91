"""A WebSocket client on asyncio that keeps its subscriptions over reconnections.

::

    async with AsyncioSession(url="wss://events.example.com/ws", token=token) as session:
        await session.subscribe("orders.>", durable="mailer")
        async for item in session:
            match item:
                case Event():
                    await mail(item.value)
                    session.acknowledge_nowait("mailer", item.position)
                case Gap():
                    ...  # events of item.channels are lost: reload their state

It behaves as `Session` does on Trio: both have the same engine. Any asyncio loop will do.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from broker.client.calls import Calls
from broker.client.engine import SUBPROTOCOL, UNHEARD
from broker.client.items import Item, Lost, Reconnecting, SessionEnded
from broker.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from broker.client.flags import Flag

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # NATS has no larger messages
QUEUE_MESSAGES = 64  # read ahead, so that pings are answered while a message is processed
OPEN_SECONDS = 8.0
CLOSE_SECONDS = 1.0

# At level DEBUG the library logs each header, including the token.
quiet = logging.getLogger("broker.client.websockets")
quiet.setLevel(logging.INFO)


class Connect(connect):
    """A connection that follows no redirect: the token is for this address."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


@attrs.define(eq=False, kw_only=True)
class AsyncioSession(Calls):
    """One client. `token` may be a function, which is then asked for each connection and before one expires.

    When that raises, hangs or returns no token, it is called again later, and `Reconnecting` reports it.
    `tenant` is for monitoring tokens. The session reconnects for as long as the `async with` lasts; iterate
    to receive. Iteration raises `SessionEnded` when the broker has refused the same token twice.
    """

    task: asyncio.Task[None] | None = attrs.field(init=False, default=None, repr=False)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)  # there may be something to send
    expiring: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    taken: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    items: asyncio.Queue[Item | None] = attrs.field(factory=asyncio.Queue, repr=False)  # None: the end

    async def __aenter__(self) -> AsyncioSession:
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.task is None:
            return
        self.task.cancel()
        await asyncio.wait([self.task])
        if error is None and not self.task.cancelled():
            self.task.result()

    async def run(self) -> None:
        """Keep a connection until cancelled, or until the broker ends the session.

        `async with` calls this.
        """
        ended: SessionEnded | None = None
        try:
            while not isinstance(end := await self.connect(), SessionEnded):
                after = self.engine.wait(end, asyncio.get_running_loop().time())
                self.tell(Reconnecting(reason=end.reason, after=after, cause=end.cause))
                await asyncio.sleep(after)
            ended = end
        finally:
            self.engine.end(ended)
            self.items.put_nowait(None)

    def tell(self, *items: Item) -> None:
        for item in (*self.engine.notices(self.clock()), *items):
            if not self.unheard(item):
                self.items.put_nowait(item)

    def unheard(self, item: Item) -> bool:
        """Return whether an item is to be dropped, since nobody need receive it and many are waiting."""
        return self.engine.is_free(item) and self.items.qsize() >= UNHEARD

    def __aiter__(self) -> AsyncioSession:
        return self

    async def __anext__(self) -> Item:
        self.taker = self.current_task()
        while (item := await self.items.get()) is not None:
            self.taken.set()
            if self.engine.is_wanted(item):
                return item
        self.items.put_nowait(None)
        if self.task is not None:
            await asyncio.wait([self.task])
            if not self.task.cancelled():
                self.task.result()
        if self.engine.ended is not None:
            raise self.engine.ended
        raise StopAsyncIteration

    def flag(self) -> asyncio.Event:
        return asyncio.Event()

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    async def wait(self, flag: Flag, until: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == inf else until):
                await flag.wait()

    # --- one connection ----------------------------------------------------------------------------

    async def ask_for_token(self, ask: Callable[[], Awaitable[str]]) -> str:
        # A task of its own: it is abandoned if it ignores its cancellation.
        task = asyncio.ensure_future(ask())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait([task], timeout=self.token_timeout)
        finally:
            done = task.done()
            task.cancel()
        if not done:
            raise TimeoutError(f"no answer within {self.token_timeout:g} s")
        if task.cancelled():
            raise TimeoutError("it was cancelled")
        return task.result()

    async def connect(self) -> Lost | SessionEnded:
        """Run one connection from the handshake to its end, and return why it ended."""
        token = await self.current_token()
        if isinstance(token, Lost):
            return token
        self.engine.begin(token, asyncio.get_running_loop().time())
        self.expiring.clear()
        try:
            async with self.opening(token) as link:
                return await self.converse(link)
        except InvalidStatus as rejected:
            answer = rejected.response
            after = answer.headers.get("Retry-After", "")
            return self.engine.refused(answer.status_code, after, bytes(answer.body or b""))
        except InvalidMessage:
            return Lost("no answer to the WebSocket handshake")
        except (OSError, WebSocketException) as error:
            return Lost(str(error) or type(error).__name__)

    def opening(self, token: str) -> Connect:
        secured = self.ssl_context is not None and urlsplit(self.url).scheme == "wss"
        options: dict[str, Any] = {"ssl": self.ssl_context} if secured else {}
        return Connect(
            self.engine.address(),
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            proxy=None,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,  # the engine and the broker have their own heartbeats
            max_size=MAX_MESSAGE_BYTES,
            max_queue=QUEUE_MESSAGES,
            logger=quiet,
            **options,
        )

    async def converse(self, link: ClientConnection) -> Lost | SessionEnded:
        """Read and write until the connection is lost, or should be left."""
        parts = [asyncio.create_task(part) for part in (self.read(link), self.write(link), self.renew())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def read(self, link: ClientConnection) -> Lost | SessionEnded:
        clock = asyncio.get_running_loop().time
        while True:
            self.engine.listening(clock())
            self.changed.set()
            try:
                text = await link.recv()
            except ConnectionClosed as closed:
                return self.closed(closed)
            item = self.engine.receive(text, clock())
            if isinstance(item, Lost):
                return item
            self.changed.set()
            if item is not None:
                await self.hand_over(item)

    async def hand_over(self, item: Item) -> None:
        """Hand over an item; wait until it is received, unless nobody need receive it."""
        if self.unheard(item):
            return
        self.items.put_nowait(item)
        while not self.engine.is_free(item) and self.items.qsize() > self.ahead():
            self.taken.clear()
            await self.taken.wait()

    async def write(self, link: ClientConnection) -> Lost | SessionEnded:
        clock = asyncio.get_running_loop().time
        while True:
            self.changed.clear()
            if lost := self.engine.overdue(clock()):
                return lost
            if self.engine.token_wanted(clock()):
                self.expiring.set()
            try:
                for text in self.engine.outgoing(clock()):
                    await link.send(text)
            except ConnectionClosed as closed:
                return self.closed(closed)
            self.tell()
            await self.wait(self.changed, self.engine.due(clock()))

    async def renew(self) -> Lost | SessionEnded:
        """Send a new token whenever one is wanted. Until then the old one stays valid."""
        clock = asyncio.get_running_loop().time
        while True:
            await self.expiring.wait()
            self.expiring.clear()
            token = await self.current_token()
            if isinstance(token, Lost):
                self.engine.token_missing(clock())
            else:
                self.engine.renewed(token, clock())
            self.changed.set()

    def closed(self, closed: ConnectionClosed) -> Lost | SessionEnded:
        code, said = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (CloseCode.GOING_AWAY, None)
        return self.engine.closed(code, said, asyncio.get_running_loop().time())
