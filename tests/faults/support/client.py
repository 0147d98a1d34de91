"""A client in bytes: RFC 6455 over a TCP socket."""

from __future__ import annotations

import itertools
import json
import struct
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from tests.faults.support.follower import Follower, Lost
from tests.web.harness import CLOSE, KEY, PONG, TEXT, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRY_MS = 500  # where an error does not say
MASK = 0x80


@attrs.define(eq=False, kw_only=True)
class Client(Follower):
    """A follower by WebSocket: one `subscribe` of its whole list on each connection."""

    subscribe_id: ClassVar[str | None] = "subscribe"
    replies: dict[str, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=itertools.count)
    writing: trio.Lock = attrs.field(factory=trio.Lock)

    def closed(self, code: int | None) -> None:
        super().closed(code)
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

    async def read(self, buffer: bytearray) -> None:
        while True:
            done = 0
            while (parsed := parse(buffer, done)) is not None:
                opcode, payload, done = parsed
                if opcode == TEXT:
                    await self.hear(msgspec.json.decode(payload))
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

    async def hear(self, message: dict[str, Any]) -> None:
        if (message_id := message.get("messageId")) in self.replies:
            self.replies.pop(message_id).send_nowait(message)
        await super().hear(message)
        if message["type"] == "error" and message_id == self.subscribe_id:
            payload = message["payload"]
            assert payload["retryable"], payload
            await trio.sleep(payload.get("retry_after_ms", RETRY_MS) / 1000)
            await self.subscribe()

    async def subscribe(self) -> None:
        await self.say("subscribe", {"channel": self.wanted()} | self.wish, self.subscribe_id)

    def wanted(self) -> list[str]:
        return self.patterns

    async def ask(self, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        message_id = f"{self.name}.{next(self.numbers)}"
        self.replies[message_id], reply = trio.open_memory_channel[dict[str, Any]](1)
        try:
            await self.say(kind, payload, message_id)
            answer: dict[str, Any] = await reply.receive()
        except (Lost, OSError, trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            self.replies.pop(message_id, None)
            return None
        return answer

    async def hurry(self) -> None:
        await self.ask("ping", {})


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
