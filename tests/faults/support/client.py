"""A client in bytes: RFC 6455 over a TCP socket, and the protocol's rules for coming back.

It keeps every event, gap and change of state with its time, and comes back by itself whenever its connection
ends: with one `subscribe` of its whole list and its resume position.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from tests.faults.support.proxy import Gate, open_gate
from tests.web.harness import CLOSE, KEY, PONG, TEXT, frame

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

RECONNECT_SECONDS = 0.05, 0.3
RETRY_MS = 500  # where an error does not say
OPENING_SECONDS = 20.0
MASK = 0x80
NARROW, WIDE = 4096, 1 << 20  # receive buffers: of a client that takes nothing, of one that catches up
MOVES = {"gap": "to"} | dict.fromkeys(
    ("event", "subscribed", "subscription.live", "pong", "connection.draining"), "position"
)  # which message moves the resume position by which field


class Lost(Exception):
    """The connection has ended; `code` is that of the Close frame, if there was one."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(code)
        self.code = code


@attrs.frozen
class Received:
    """One `event`: when and on which connection, the channel, the position and the id within."""

    at: float
    connection: int
    channel: str
    incarnation: str
    sequence: int  # 0: of a live channel
    id: str
    catch_up: int | None


@attrs.frozen
class Noted:
    """Any other message of the broker."""

    at: float
    connection: int
    kind: str
    payload: dict[str, Any]


@attrs.frozen
class Stay:
    """One connection: `since` its subscriptions stood, and when and how it ended (None: it stands)."""

    number: int
    since: float
    until: float | None = None
    code: int | None = None


@attrs.define(eq=False, kw_only=True)
class Follower:
    """One client. `address` says where the broker is (None: nowhere now)."""

    name: str
    tenant: str
    user: str
    patterns: list[str]  # as it sends them; `me` is spelled out
    denied: list[str]
    token: Callable[[], str]
    address: Callable[[], str | None]
    random: random.Random
    start: dict[str, Any] = attrs.field(factory=dict)  # of its first subscription
    lag: str | None = None  # its policy, where it asks for one
    reading: Gate = attrs.field(factory=open_gate)
    position: str | None = None
    baseline: str | None = None  # the position of its first subscription: from there it is entitled
    connection: int = 0
    stream: trio.SocketStream | None = None
    subscribed: trio.Event = attrs.field(factory=trio.Event)  # on the present connection, and live
    away: bool = False  # it does not come back while this is set
    ended: bool = False
    events: list[Received] = attrs.field(factory=list)
    notes: list[Noted] = attrs.field(factory=list)
    stays: list[Stay] = attrs.field(factory=list)
    replies: dict[str, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(factory=dict)
    numbers: itertools.count[int] = attrs.field(factory=itertools.count)
    writing: trio.Lock = attrs.field(factory=trio.Lock)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        with self.scope:
            while not self.ended:
                if not self.away and (address := self.address()):
                    await self.connect(address)
                await trio.sleep(self.random.uniform(*RECONNECT_SECONDS))

    def cut(self) -> None:
        """Ends the connection rudely; it comes back by itself."""
        if self.stream:
            self.stream.socket.close()

    def go_away(self) -> None:
        """Ends the connection, not to come back before `away` is reset."""
        self.away = True
        self.cut()

    def leave(self) -> None:
        """Ends it for good."""
        self.ended = True
        self.cut()
        self.scope.cancel()

    def stop_reading(self) -> None:
        """From now on takes nothing off its link; its kernel takes little."""
        self.take_at_once(NARROW)
        self.reading.shut()

    def read_again(self) -> None:
        self.take_at_once(WIDE)
        self.reading.open()

    def take_at_once(self, size: int) -> None:
        """Sets how many bytes the kernel takes for it."""
        if self.stream:
            with contextlib.suppress(OSError):  # it was cut just now
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    # --- one connection ----------------------------------------------------------------------------

    async def connect(self, address: str) -> None:
        self.connection += 1
        code: int | None = None
        try:
            with trio.move_on_after(OPENING_SECONDS) as opening:
                buffer = await self.open(address)
                opening.deadline = float("inf")
                await self.read(buffer)
        except Lost as lost:
            code = lost.code
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed(code)

    def closed(self, code: int | None) -> None:
        if self.stream:
            self.stream.socket.close()
        self.stream = None
        if self.subscribed.is_set():  # else somebody may wait for the next one
            self.subscribed = trio.Event()
        if self.stays and self.stays[-1].until is None:
            self.stays[-1] = attrs.evolve(self.stays[-1], until=trio.current_time(), code=code)
        for waiting in self.replies.values():
            waiting.close()
        self.replies.clear()

    async def open(self, address: str) -> bytearray:
        parts = urlsplit(address)
        assert parts.hostname
        assert parts.port
        self.stream = await trio.open_tcp_stream(parts.hostname, parts.port)
        lines = [
            f"GET {parts.path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY}",
            "Sec-WebSocket-Protocol: broker.v1",
            f"Authorization: Bearer {self.token()}",
        ]
        await self.stream.send_all("\r\n".join([*lines, "\r\n"]).encode())
        buffer = bytearray()
        while b"\r\n\r\n" not in buffer:
            buffer += await self.more()
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Lost
        return bytearray(rest)

    async def more(self) -> bytes | bytearray:
        await self.reading.passed()
        if self.stream is None:
            raise Lost
        data = await self.stream.receive_some()
        if not data:
            raise Lost
        return data

    async def read(self, buffer: bytearray) -> None:
        while True:
            done = 0
            while (parsed := parse(buffer, done)) is not None:
                opcode, payload, done = parsed
                if opcode == TEXT:
                    await self.handle(payload)
                elif opcode == CLOSE:
                    raise Lost(struct.unpack("!H", payload[:2])[0] if payload else None)
                else:
                    await self.send(frame(PONG, payload))
            del buffer[:done]
            buffer += await self.more()

    async def send(self, data: bytes) -> None:
        async with self.writing:
            if self.stream is None:
                raise Lost
            await self.stream.send_all(data)

    async def say(self, kind: str, payload: dict[str, Any], message_id: str | None = None) -> None:
        message = {"type": kind, "payload": payload} | ({"messageId": message_id} if message_id else {})
        await self.send(frame(TEXT, json.dumps(message).encode()))

    # --- what the broker says ----------------------------------------------------------------------

    async def handle(self, data: bytes) -> None:
        now = trio.current_time()
        message = msgspec.json.decode(data)
        kind, payload = message["type"], message["payload"]
        if kind == "event":
            self.event(now, payload)
        else:
            self.notes.append(Noted(now, self.connection, kind, payload))
            self.move(kind, payload)
        message_id = message.get("messageId")
        if message_id in self.replies:
            self.replies.pop(message_id).send_nowait(message)
        match kind:
            case "connection.authenticated":
                await self.subscribe()
            case "subscribed" if message_id == "subscribe":
                assert not payload["refused"], payload
                self.baseline = self.baseline or payload["position"]
                self.stays.append(Stay(self.connection, now))
                if payload["live"]:
                    await self.live()
            case "subscription.live" if "catch_up" not in payload:
                await self.live()
            case "error" if message_id == "subscribe":
                assert payload["retryable"], payload
                await trio.sleep(payload.get("retry_after_ms", RETRY_MS) / 1000)
                await self.subscribe()
            case _:
                await self.heard(kind, payload, message_id)

    async def live(self) -> None:
        """Its list is up to date."""
        self.subscribed.set()

    async def heard(self, kind: str, payload: dict[str, Any], message_id: str | None) -> None:
        """For clients that do more."""

    async def subscribe(self) -> None:
        """Its whole list, from where it stands."""
        start = {"position": self.position} if self.position else self.start
        lag = {"lag": self.lag} if self.lag else {}
        await self.say("subscribe", {"channel": self.wanted()} | start | lag, "subscribe")

    def wanted(self) -> list[str]:
        return self.patterns

    def event(self, now: float, payload: dict[str, Any]) -> None:
        position = payload.get("position")
        incarnation, _, sequence = (position or "-0").rpartition("-")
        catch_up = payload.get("catch_up")
        self.received(
            Received(
                now,
                self.connection,
                payload["channel"],
                incarnation,
                int(sequence),
                payload["event"]["n"],
                catch_up,
            )
        )
        self.move("event", payload)

    def received(self, event: Received) -> None:
        assert event.catch_up is None, event
        self.events.append(event)

    def move(self, kind: str, payload: dict[str, Any]) -> None:
        """The last live position that it was told is where it resumes; a catch-up has one of its own."""
        position = payload.get(MOVES.get(kind, ""))
        if position is not None and not (kind in ("event", "gap") and "catch_up" in payload):
            self.position = position

    # --- what a test asks of it --------------------------------------------------------------------

    async def ask(self, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to one message; None when the connection ended first."""
        message_id = f"{self.name}.{next(self.numbers)}"
        self.replies[message_id], reply = trio.open_memory_channel[dict[str, Any]](1)
        try:
            await self.say(kind, payload, message_id)
            answer: dict[str, Any] = await reply.receive()
        except (Lost, OSError, trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            self.replies.pop(message_id, None)
            return None
        return answer

    def describe(self) -> str:
        """Where it is, for a test that waited for it in vain."""
        state = "live" if self.subscribed.is_set() else "connected" if self.stream else "away"
        last = self.notes[-1] if self.notes else None
        return f"{self.name} at {self.position}, {state}, connection {self.connection}, last told {last}"

    async def reached(self, sequence: int) -> None:
        """Waits until its live position is there, in whatever incarnation."""
        while True:
            await self.subscribed.wait()
            await self.ask("ping", {})
            if self.position and int(self.position.rpartition("-")[2]) >= sequence:
                return
            await trio.sleep(0.1)


def parse(buffer: bytearray, start: int) -> tuple[int, bytes, int] | None:
    """Opcode, payload and end of the frame that begins at `start`; None when it is not complete.

    The broker neither masks nor fragments nor compresses (RFC 6455, section 5.2).
    """
    size = len(buffer) - start
    if size < 2:
        return None
    first, length = buffer[start], buffer[start + 1]
    assert first & 0xF0 == 0x80, f"first byte {first:#x}"
    assert not length & MASK, "masked by the server"
    at = start + 2
    if length == 126:
        if size < 4:
            return None
        length, at = struct.unpack_from("!H", buffer, at)[0], at + 2
    elif length == 127:
        if size < 10:
            return None
        length, at = struct.unpack_from("!Q", buffer, at)[0], at + 8
    if len(buffer) < at + length:
        return None
    return first & 0x0F, bytes(buffer[at : at + length]), at + length
