"""WebSocket as a `Transport`: `whole` or wsproto reads the frames, a link moves the bytes."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from broker.actors.transport import Alive, Closed, Control, Inbound, Text
from broker.errors import CloseCode
from broker.links.websocket import whole
from broker.links.websocket.gate import Gate
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsproto.frame_protocol import Frame

    from broker.actors.transport import LinkState
    from broker.links.tcp import Link

# A message has to be complete within this time, however it is fragmented: 64 KiB take 18 s at 30 kbit/s.
MESSAGE_SECONDS = 30.0
EMPTY_CLOSE = b"\x88\x80\0\0\0\0"  # as a client sends it, masked with zeros


@attrs.define(eq=False)
class Arrival:
    """What a client is sending, until no message or frame is incomplete."""

    gate: Gate
    protocol: FrameProtocol = attrs.field(factory=lambda: FrameProtocol(client=False, extensions=[]))
    message: bytearray | None = None  # the fragments so far
    deadline: float = math.inf  # of the message that is incomplete

    def feed(self, data: bytes, deadline: float) -> None:
        """Take bytes; `deadline` is for a message that begins with them."""
        begun = self.gate.begun
        self.protocol.receive_bytes(self.gate.admit(data))
        if self.gate.at_rest:
            self.deadline = math.inf
        elif self.deadline == math.inf or self.gate.begun != begun:
            self.deadline = deadline

    def next(self) -> Inbound | None:
        """Return what the connection hears next; None while a message is incomplete."""
        try:
            for frame in self.protocol.received_frames():
                inbound = self.inbound(frame)
                if inbound is not None:
                    return inbound
        except ParseFailed as failed:
            invalid = failed.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA
            return ending(failed.code, "invalid UTF-8" if invalid else str(failed))
        if self.gate.fault is not None:
            return ending(self.gate.fault.code, self.gate.fault.reason)
        return None

    def inbound(self, frame: Frame) -> Inbound | None:
        match frame.opcode, frame.payload:
            case Opcode.TEXT, str(piece):
                return self.text(piece.encode(), finished=frame.message_finished)
            case Opcode.PING, bytes() | bytearray() as payload:
                return Control(data=frames.frame(frames.PONG, bytes(payload)))
            case Opcode.PONG, _:
                return Alive()
            case Opcode.CLOSE, (CloseReason.NO_STATUS_RCVD as code, _):
                return Closed(code=code, by="client", answer=frames.frame(frames.CLOSE, b""))
            case Opcode.CLOSE, (int(code), str(reason)):
                return Closed(code=code, by="client", reason=reason, answer=frames.close(code, ""))
        return ending(CloseCode.UNSUPPORTED_DATA, "binary message")

    def text(self, piece: bytes, *, finished: bool) -> Text | None:
        """Collect a message: wsproto hands out pieces as they arrive, and checks UTF-8 across them."""
        if self.message is not None:
            self.message += piece
        elif finished:
            return Text(data=piece)
        else:
            self.message = bytearray(piece)
        if not finished:
            return None
        data, self.message = bytes(self.message), None
        return Text(data=data)

    def drop(self) -> None:
        """End wsproto's parser, which is a generator in a reference cycle until it has seen a Close.

        A cycle for each client that just disconnects would add up to full garbage collections. Zeros stand in
        for the rest of an incomplete frame; if they are invalid in it, the parser ends as well.
        """
        self.protocol.receive_bytes(bytes(self.gate.remaining) + EMPTY_CLOSE)
        with suppress(ParseFailed):
            for _ in self.protocol.received_frames():
                pass


@attrs.define(eq=False)
class WebSocketTransport:
    """One client after its handshake.

    `message_bytes` bounds a message, `message_seconds` the time that it takes to arrive. There is an
    `arrival` only while a frame or message is incomplete: wsproto's state takes 2 KiB and 100 µs.
    """

    name: ClassVar[str] = "websocket"
    answers: ClassVar[bool] = True
    comes_and_goes: ClassVar[bool] = False
    framing: ClassVar[None] = None
    link: Link
    message_bytes: int
    message_seconds: float = MESSAGE_SECONDS
    ready: Inbound | None = attrs.field(init=False, default=None)  # arrived in one whole frame
    unread: bytes = attrs.field(init=False, default=b"")  # what followed that frame
    arrival: Arrival | None = attrs.field(init=False, default=None)
    send_nowait: Callable[[bytes | memoryview], int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.send_nowait = self.link.send_nowait

    @property
    def partial_sends(self) -> bool:
        return self.link.partial_sends

    def limit_messages(self, message_bytes: int) -> None:
        self.message_bytes = message_bytes
        if self.arrival is not None:
            self.arrival.gate.limit = message_bytes

    def behind(self, *, begins: bool) -> None:
        """Do nothing: the client is not told."""

    async def receive(self) -> Inbound:
        while True:
            if self.ready is not None:
                inbound, unread = self.ready, self.unread
                self.ready, self.unread = None, b""
                if unread:
                    self.feed(unread)
                return inbound
            if self.arrival is not None:
                if (following := self.arrival.next()) is not None:
                    return following
                if self.arrival.gate.at_rest:
                    self.forget()
            # No cancel scope while the client is idle: it takes a KiB.
            data = await (self.link.receive() if self.arrival is None else self.rest(self.arrival))
            if data is None:
                return ending(CloseCode.HEARTBEAT, f"message incomplete after {self.message_seconds:g} s")
            if not data:
                return Closed(code=CloseReason.ABNORMAL_CLOSURE, by="link")
            self.feed(data)

    async def rest(self, arrival: Arrival) -> bytes | None:
        """Return more of an incomplete message; None when it is overdue."""
        with trio.move_on_at(arrival.deadline):
            return await self.link.receive()
        return None

    def feed(self, data: bytes) -> None:
        """Take bytes that have arrived; nothing that was ready is left."""
        if self.arrival is None:
            self.ready, self.unread = whole.take(data, self.message_bytes)
            if self.ready is not None:
                return
            self.unread = b""
            self.arrival = Arrival(Gate(self.message_bytes))
        self.arrival.feed(data, trio.current_time() + self.message_seconds)

    def forget(self) -> None:
        if self.arrival is not None:
            self.arrival.drop()
            self.arrival = None

    async def send_some(self, data: bytes | memoryview) -> int:
        return await self.link.send_some(data)

    def frame(self, message: bytes) -> bytes:
        return frames.frame(frames.TEXT, message)

    def ping(self, position: str | None) -> bytes:  # noqa: ARG002 - clients get P by a ping of their own
        return frames.frame(frames.PING, b"")

    def ask(self) -> bytes:
        return frames.frame(frames.PING, b"")

    def state(self) -> LinkState:
        return self.link.state()

    def close(self, code: int, reason: str) -> bytes:
        return frames.close(code, reason)

    async def linger(self) -> None:
        await self.link.linger()

    def abort(self) -> None:
        self.link.abort()
        self.forget()


def ending(code: int, reason: str) -> Closed:
    """Return the end of a client that broke the protocol, with the reason for it and for the log."""
    return Closed(code=code, by="broker", reason=reason, answer=frames.close(code, reason))
