"""WebSocket as a `Transport`: the frames by wsproto, the bytes by a link of ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from broker.actors.transport import Alive, Closed, Control, Inbound, Text
from broker.errors import CloseCode
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.web.gate import Gate
    from broker.web.links import Link

# A message, once begun, is complete within this, however it is cut up: 64 KiB take 18 s at 30 kbit/s.
MESSAGE_SECONDS = 30.0
EMPTY_CLOSE = b"\x88\x80\0\0\0\0"  # as a client sends it, masked with zeros
NOTHING: Iterator[Event] = iter(())


@attrs.define(eq=False)
class WebSocketTransport:
    """One client after its handshake. What it sent right behind the request is fed to it.

    While the client is silent nothing is held but wsproto's state and the gate's few numbers.
    """

    link: Link
    gate: Gate
    message_seconds: float = MESSAGE_SECONDS
    connection: Connection = attrs.field(init=False, factory=lambda: Connection(ConnectionType.SERVER))
    events: Iterator[Event] = attrs.field(init=False, default=NOTHING)
    message: bytearray | None = attrs.field(init=False, default=None)  # the beginning of one
    deadline: float = attrs.field(init=False, default=math.inf)  # of the message that has begun

    @property
    def partial_sends(self) -> bool:
        return self.link.partial_sends

    async def receive(self) -> Inbound:
        while True:
            for event in self.events:
                inbound = self.inbound(event)
                if inbound is not None:
                    return inbound
            self.events = NOTHING
            if self.gate.fault is not None:
                return ending(self.gate.fault.code, self.gate.fault.reason)
            data = await self.arrival()
            if data is None:
                return ending(CloseCode.HEARTBEAT, f"message not complete after {self.message_seconds:g} s")
            if not data:
                return Closed(code=CloseReason.ABNORMAL_CLOSURE)
            self.feed(data)

    async def arrival(self) -> bytes | None:
        """Bytes of the client, none at the end of the link; `None` when the message is overdue."""
        if self.deadline == math.inf:
            return await self.link.receive()  # a cancel scope for each idle client would be a KiB
        with trio.move_on_at(self.deadline):
            return await self.link.receive()
        return None

    def feed(self, data: bytes) -> None:
        begun = self.gate.begun
        self.connection.receive_data(self.gate.admit(data))
        self.events = self.connection.events()
        if self.gate.at_rest:
            self.deadline = math.inf
        elif self.deadline == math.inf or self.gate.begun != begun:
            self.deadline = trio.current_time() + self.message_seconds

    def inbound(self, event: Event) -> Inbound | None:
        """What the connection hears of this; nothing of an unfinished message."""
        if isinstance(event, TextMessage):
            return self.text(event)
        if isinstance(event, Ping):
            return Control(data=frames.frame(frames.PONG, bytes(event.payload)))
        if isinstance(event, Pong):
            return Alive()
        if not isinstance(event, CloseConnection):
            return ending(CloseCode.UNSUPPORTED_DATA, "binary message")
        if self.connection.state is not ConnectionState.REMOTE_CLOSING:
            invalid = event.code == CloseCode.INVALID_PAYLOAD
            return ending(event.code, "invalid UTF-8" if invalid else event.reason or "")
        if event.code == CloseReason.NO_STATUS_RCVD:
            return Closed(code=event.code, answer=frames.frame(frames.CLOSE, b""))
        return Closed(code=event.code, reason=event.reason or "", answer=frames.close(event.code, ""))

    def text(self, event: TextMessage) -> Text | None:
        """wsproto hands out each piece as it arrives, with its UTF-8 checked over their borders."""
        piece = event.data.encode()
        if self.message is not None:
            self.message += piece
        elif event.message_finished:
            return Text(data=piece)
        else:
            self.message = bytearray(piece)
        if not event.message_finished:
            return None
        data, self.message = bytes(self.message), None
        return Text(data=data)

    def send_nowait(self, data: bytes | memoryview) -> int:
        return self.link.send_nowait(data)

    async def send_some(self, data: bytes | memoryview) -> int:
        return await self.link.send_some(data)

    def frame(self, message: bytes) -> bytes:
        return frames.frame(frames.TEXT, message)

    def ping(self) -> bytes:
        return frames.frame(frames.PING, b"")

    def close(self, code: int, reason: str) -> bytes:
        return frames.close(code, reason)

    async def linger(self) -> None:
        await self.link.linger()

    def abort(self) -> None:
        self.link.abort()
        # wsproto's parser is a generator that holds the object that holds it, until it has seen a Close.
        # A cycle for each client that just goes away is a full collection sooner or later.
        self.events = NOTHING
        self.connection.receive_data(bytes(self.gate.remaining) + EMPTY_CLOSE)
        for _ in self.connection.events():
            pass


def ending(code: int, reason: str) -> Closed:
    """The client broke the protocol: why, for it and for us."""
    return Closed(code=code, reason=reason, answer=frames.close(code, reason))
