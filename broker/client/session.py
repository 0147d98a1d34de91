"""A WebSocket client on Trio that keeps its subscriptions over reconnections.

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
                    ...  # events of item.channels are lost: reload their state

It is the client's side of the protocol page, "Positions, order and loss". Items are handed over one at a
time; while the application does not iterate, nothing more is read, and the broker treats the connection as
slow.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

import attrs
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from broker.client.calls import Calls
from broker.client.engine import SUBPROTOCOL, UNHEARD
from broker.client.items import Item, Lost, Reconnecting, SessionEnded
from broker.client.link import use_link
from broker.errors import CloseCode
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.client.flags import Flag


@attrs.define(eq=False, kw_only=True)
class Session(Calls):
    """One client. `token` may be a function, which is then asked for each connection and before one expires.

    When that raises, hangs or returns no token, it is called again later, and `Reconnecting` reports it.
    `tenant` is for monitoring tokens. `run` connects and reconnects; iterate to receive. Iteration raises
    `SessionEnded` when the broker has refused the same token twice.
    """

    changed: Signal = attrs.field(factory=Signal, repr=False)  # there may be something to send
    expiring: Signal = attrs.field(factory=Signal, repr=False)
    taken: Signal = attrs.field(factory=Signal, repr=False)
    channels: tuple[trio.MemorySendChannel[Item], trio.MemoryReceiveChannel[Item]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Item](inf), repr=False
    )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled, or until the broker ends the session.

        Reports started at once.
        """
        task_status.started()
        ended: SessionEnded | None = None
        try:
            while not isinstance(end := await self.connect(), SessionEnded):
                after = self.engine.wait(end, trio.current_time())
                self.tell(Reconnecting(reason=end.reason, after=after, cause=end.cause))
                await trio.sleep(after)
            ended = end
        finally:
            self.engine.end(ended)
            self.channels[0].close()

    def tell(self, *items: Item) -> None:
        for item in (*self.engine.notices(self.clock()), *items):
            if not self.unheard(item):
                self.channels[0].send_nowait(item)

    def unheard(self, item: Item) -> bool:
        """Return whether an item is to be dropped, since nobody need receive it and many are waiting."""
        waiting = self.channels[1].statistics().current_buffer_used
        return self.engine.is_free(item) and waiting >= UNHEARD

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Item:
        self.taker = self.current_task()
        while True:
            try:
                item = await self.channels[1].receive()
            except trio.EndOfChannel:
                if self.engine.ended is not None:
                    raise self.engine.ended from None
                raise StopAsyncIteration from None
            self.taken.set()
            if self.engine.is_wanted(item):
                return item

    async def say(self) -> None:
        await super().say()
        await trio.lowlevel.checkpoint()

    def flag(self) -> trio.Event:
        return trio.Event()

    def current_task(self) -> trio.lowlevel.Task:
        return trio.lowlevel.current_task()

    def clock(self) -> float:
        return trio.current_time()

    async def wait(self, flag: Flag, until: float) -> None:
        with trio.move_on_at(until):
            await flag.wait()

    # --- one connection ----------------------------------------------------------------------------

    async def ask_for_token(self, ask: Callable[[], Awaitable[str]]) -> str:
        with trio.move_on_after(self.token_timeout):
            return await ask()
        raise TimeoutError(f"no answer within {self.token_timeout:g} s")

    async def connect(self) -> Lost | SessionEnded:
        """Run one connection from the handshake to its end, and return why it ended."""
        token = await self.current_token()
        if isinstance(token, Lost):
            return token
        self.engine.begin(token, trio.current_time())
        self.expiring.clear()
        try:
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
        except OSError as error:
            return Lost(str(error))

    async def converse(self, link: WebSocketConnection) -> Lost | SessionEnded:
        """Read and write until the connection is lost, or should be left."""
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
            except ConnectionClosed as closed:
                return self.closed(closed)
            item = self.engine.receive(text, trio.current_time())
            if isinstance(item, Lost):
                return item
            self.changed.set()
            if item is not None:
                await self.hand_over(item)

    async def hand_over(self, item: Item) -> None:
        """Hand over an item; wait until it is received, unless nobody need receive it."""
        send, receive = self.channels
        if self.unheard(item):
            return
        send.send_nowait(item)
        while not self.engine.is_free(item) and receive.statistics().current_buffer_used > self.ahead():
            await self.taken.wait()

    async def write(self, link: WebSocketConnection) -> Lost | SessionEnded:
        while True:
            now = trio.current_time()
            if lost := self.engine.overdue(now):
                return lost
            if self.engine.token_wanted(now):
                self.expiring.set()
            try:
                for text in self.engine.outgoing(now):
                    await link.send_message(text)
            except ConnectionClosed as closed:
                return self.closed(closed)
            self.tell()
            with trio.move_on_at(self.engine.due(trio.current_time())):
                await self.changed.wait()

    async def renew(self) -> Lost | SessionEnded:
        """Send a new token whenever one is wanted. Until then the old one stays valid."""
        while True:
            await self.expiring.wait()
            token = await self.current_token()
            if isinstance(token, Lost):
                self.engine.token_missing(trio.current_time())
            else:
                self.engine.renewed(token, trio.current_time())
            self.changed.set()

    def closed(self, closed: ConnectionClosed) -> Lost | SessionEnded:
        code, said = int(CloseCode.GOING_AWAY), None
        if closed.reason is not None:
            code, said = closed.reason.code, closed.reason.reason
        return self.engine.closed(code, said, trio.current_time())
