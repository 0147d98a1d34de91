"""NATS core protocol over one Trio stream: "a client of another make" for the tests.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@attrs.frozen(kw_only=True)
class Message:
    subject: bytes
    reply: bytes
    header: bytes
    body: bytes


@attrs.define(eq=False)
class RawNats:
    """Publishes, subscribes and asks. Subjects may be bytes that no str could hold."""

    stream: trio.SocketStream
    buffer: bytearray = attrs.field(factory=bytearray)
    routes: dict[int, trio.MemorySendChannel[Message]] = attrs.field(factory=dict)
    pongs: list[trio.Event] = attrs.field(factory=list)
    sids: int = 0
    writing: trio.Lock = attrs.field(factory=trio.Lock)
    ended: trio.Event = attrs.field(factory=trio.Event)  # set when the server is gone

    async def write(self, data: bytes) -> None:
        if self.ended.is_set():
            raise trio.BrokenResourceError("the server is gone")
        async with self.writing:
            await self.stream.send_all(data)

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.stream.socket.getpeername()[1])

    async def publish(
        self, subject: str | bytes, body: bytes = b"", *, reply: bytes = b"", header: bytes = b""
    ) -> None:
        subject = subject.encode() if isinstance(subject, str) else subject
        if header:
            line = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(header), len(header) + len(body))
        else:
            line = b"PUB %b %b %d\r\n" % (subject, reply, len(body))
        await self.write(line + header + body + b"\r\n")

    async def subscribe(self, subject: str) -> trio.MemoryReceiveChannel[Message]:
        self.sids += 1
        self.routes[self.sids], received = trio.open_memory_channel[Message](math.inf)
        await self.write(f"SUB {subject} {self.sids}\r\n".encode())
        return received

    async def flush(self) -> None:
        """Returns when the server has taken everything sent before."""
        self.pongs.append(trio.Event())
        pong = self.pongs[-1]
        await self.write(b"PING\r\n")
        await pong.wait()
        if self.ended.is_set():
            raise trio.BrokenResourceError("the server is gone")

    async def request(self, subject: str | bytes, body: bytes = b"", *, header: bytes = b"") -> Message:
        sid = self.sids + 1
        inbox = f"_INBOX.raw.{id(self)}.{sid}"
        answers = await self.subscribe(inbox)
        await self.publish(subject, body, reply=inbox.encode(), header=header)
        answer = await answers.receive()
        await self.write(f"UNSUB {sid}\r\n".encode())
        return answer

    async def api(self, call: str, **body: object) -> dict[str, Any]:
        """One call of the JetStream API: its answer, which may be an error."""
        answer = await self.request(f"$JS.API.{call}", json.dumps(body).encode() if body else b"")
        reply: dict[str, Any] = json.loads(answer.body or b"{}")
        return reply

    async def store(self, subject: str | bytes, body: bytes = b"{}", *, header: bytes = b"") -> int:
        """Publishes into a stream; the sequence that it got."""
        answer = await self.request(subject, body, header=header)
        return int(json.loads(answer.body)["seq"])

    async def read(self) -> None:
        try:
            while line := await self.line():
                match line.split(b" "):
                    case [b"MSG", subject, sid, *reply, size]:
                        await self.deliver(int(sid), subject, reply, 0, int(size))
                    case [b"HMSG", subject, sid, *reply, head, size]:
                        await self.deliver(int(sid), subject, reply, int(head), int(size))
                    case [b"PING"]:
                        await self.write(b"PONG\r\n")
                    case [b"PONG"]:
                        self.pongs.pop(0).set()
        except (EOFError, trio.BrokenResourceError):
            pass  # in the middle of a message
        finally:
            self.ended.set()
            for pong in self.pongs:
                pong.set()
            for route in self.routes.values():
                route.close()

    async def deliver(self, sid: int, subject: bytes, reply: list[bytes], head: int, size: int) -> None:
        data = await self.take(size + 2)
        message = Message(subject=subject, reply=b"".join(reply), header=data[:head], body=data[head:size])
        if sid in self.routes:
            self.routes[sid].send_nowait(message)

    async def line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            data = await self.stream.receive_some()
            if not data:
                return b""
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    async def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            more = await self.stream.receive_some()
            if not more:
                raise EOFError
            self.buffer += more
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data


@asynccontextmanager
async def connect(
    url: str, *, login: Callable[[dict[str, Any]], dict[str, str]] | None = None
) -> AsyncIterator[RawNats]:
    """A client of the server at `url`, closed at the end.

    `login` makes what the client says of itself out of what the server says of itself (its INFO).
    """
    parts = urlsplit(url)
    stream = await trio.open_tcp_stream(parts.hostname or "127.0.0.1", parts.port or 4222)
    async with stream, trio.open_nursery() as nursery:
        client = RawNats(stream)
        _, _, info = (await client.line()).partition(b" ")
        options: dict[str, object] = {"verbose": False, "headers": True, "no_responders": True}
        if parts.username:
            options |= {"user": parts.username, "pass": parts.password}
        if login:
            options |= login(json.loads(info))
        await stream.send_all(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        nursery.start_soon(client.read)
        await client.flush()
        yield client
        nursery.cancel_scope.cancel()
