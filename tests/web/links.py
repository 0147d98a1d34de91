"""Links of every kind in a test's hands: the broker's end as its `Transport`, the client's as a `Peer`."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import trio
import trio.testing

from broker.actors.transport import Alive, Text
from broker.wire import frames
from tests.support.scripted import ScriptedLink, ScriptedStream, parse_frame
from tests.support.sse import Chunks, Parser, target
from tests.web.harness import PONG, TEXT, frame, head, running, send

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from broker.actors.transport import Hello, Transport

SECONDS = 30.0  # after which whatever is waited for is not coming
RECEIVE_BUFFER = 32 * 1024  # of the client's kernel, which is to be full soon
PING = 9
USER = {"tenant": "acme", "user": "alice", "private": "users.alice.>", "expires_at": "", "permissions": {}}


@attrs.define(eq=False)
class Peer:
    """A client. `messages` are all that it has got, events alone where it polls."""

    speaks: ClassVar[bool] = True  # it can send messages
    messages: list[dict[str, Any]] = attrs.Factory(list)

    async def say(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        raise NotImplementedError

    async def read(self) -> bool:
        """Reads a piece, and adds what is whole to `messages`; False at the end of the link."""
        raise NotImplementedError

    async def read_on(self) -> None:
        """Reads until the end of the link."""
        while await self.read():
            pass

    async def leave(self) -> None:
        """Is gone, as far as TCP says it."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Is gone by a reset."""
        raise NotImplementedError

    async def half_close(self) -> None:
        """Sends nothing any more, and reads on."""
        raise NotImplementedError


@attrs.define(eq=False)
class SocketPeer(Peer):
    """A client with one socket. `stream` is above TLS, `tcp` below."""

    tcp: trio.SocketStream = attrs.field(kw_only=True)
    stream: trio.abc.Stream = attrs.field(kw_only=True)
    buffer: bytearray = attrs.field(factory=bytearray, init=False)

    async def read(self) -> bool:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            return False
        self.buffer += data
        await self.parse()
        return bool(data)

    async def parse(self) -> None:
        """Takes what is whole off the buffer."""
        raise NotImplementedError

    async def leave(self) -> None:
        await trio.aclose_forcefully(self.stream)

    async def reset(self) -> None:
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)

    async def half_close(self) -> None:
        await self.tcp.send_eof()


@attrs.define(eq=False)
class WebSocketPeer(SocketPeer):
    upgraded: bool = False

    async def say(self, message: dict[str, Any]) -> None:
        await self.stream.send_all(frame(TEXT, json.dumps(message).encode()))

    async def parse(self) -> None:
        if not self.upgraded:
            answer, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert answer.startswith(b"HTTP/1.1 101 ")
            self.upgraded, self.buffer = True, rest
        while (found := parse_frame(self.buffer)) is not None:
            opcode, payload = found
            if opcode == TEXT:
                self.messages.append(json.loads(payload))
            elif opcode == PING:
                await self.stream.send_all(frame(PONG, payload))


@attrs.define(eq=False)
class SsePeer(SocketPeer):
    speaks: ClassVar[bool] = False
    chunks: Chunks | None = None
    began: bool = False
    parser: Parser = attrs.Factory(Parser)

    async def parse(self) -> None:
        if not self.began:
            answer, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert answer.startswith(b"HTTP/1.1 200 ")
            self.chunks = Chunks() if b"chunked" in answer else None
            self.began, self.buffer = True, rest
        data = bytes(self.buffer)
        self.buffer.clear()
        whole = self.parser.feed(data if self.chunks is None else self.chunks.feed(data))
        self.messages += [json.loads(text) for text, _ in whole]


@attrs.define(eq=False)
class PollPeer(Peer):
    """Polls again and again from `begin` on, until it is gone."""

    speaks: ClassVar[bool] = False
    address: tuple[str, int] = attrs.field(kw_only=True)
    nursery: trio.Nursery = attrs.field(kw_only=True)
    tcp: trio.SocketStream | None = None  # of the poll that waits
    session: str | None = None
    position: str | None = None
    polling: trio.CancelScope = attrs.Factory(trio.CancelScope)
    changed: trio.Event = attrs.Factory(trio.Event)

    def begin(self) -> None:
        self.polling = trio.CancelScope()
        self.nursery.start_soon(self.poll_on)

    async def poll_on(self) -> None:
        with self.polling:
            while True:
                await self.poll()

    async def poll(self) -> None:
        body: dict[str, Any] = {"channels": ["a"], "wait": 30}
        body |= {"session": self.session} if self.session else {}
        body |= {"position": self.position} if self.position else {}
        data = json.dumps(body).encode()
        request = b"POST /poll HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n"
        request += b"Content-Length: %d\r\n\r\n" % len(data)
        answer = b""
        self.tcp = await trio.open_tcp_stream(*self.address)
        try:
            await self.tcp.send_all(request + data)
            async for piece in self.tcp:
                answer += piece
        finally:
            await trio.aclose_forcefully(self.tcp)
        start, _, rest = answer.partition(b"\r\n\r\n")
        if not start.startswith(b"HTTP/1.1 200 "):  # the session has ended
            self.polling.cancel()
            return
        polled = json.loads(rest)
        self.session, self.position = polled["session"], polled.get("position")
        self.messages += [{"type": "event", "payload": each} for each in polled["events"]]
        self.changed.set()
        self.changed = trio.Event()

    async def read(self) -> bool:
        if self.polling.cancel_called:
            return False
        await self.changed.wait()
        return True

    async def leave(self) -> None:
        self.polling.cancel()
        assert self.tcp
        await trio.aclose_forcefully(self.tcp)

    async def reset(self) -> None:
        assert self.tcp
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.leave()

    async def half_close(self) -> None:
        assert self.tcp
        await self.tcp.send_eof()
        self.polling.cancel()  # ahead of anything else: that would close the socket
        await trio.aclose_forcefully(self.tcp)


@attrs.define(eq=False)
class ScriptedPeer(Peer):
    link: ScriptedLink = attrs.field(kw_only=True)

    async def say(self, message: dict[str, Any]) -> None:
        self.link.to_broker.send_nowait(Text(data=json.dumps(message).encode()))

    async def read(self) -> bool:
        if self.link.cut and not self.link.buffer:
            return False
        for opcode, payload in await self.link.read(RECEIVE_BUFFER):
            if opcode == TEXT:
                self.messages.append(json.loads(payload))
            elif opcode == PING:
                self.link.to_broker.send_nowait(Alive())
        return True

    async def leave(self) -> None:
        self.link.drop()

    async def reset(self) -> None:
        self.link.drop()

    async def half_close(self) -> None:
        self.link.drop()


@attrs.define(eq=False)
class Opened:
    """A link and its client; `wishes` is what that said and was answered. Sends take turns by `sending`."""

    transport: Transport
    peer: Peer
    wishes: list[dict[str, Any]] = attrs.Factory(list)
    sending: trio.Lock = attrs.Factory(trio.Lock)

    async def subscribed(self) -> None:
        """Answers what the client says as a connection does, up to its subscription to `a`.

        A client that polls asks for P with the poll after that, which is then the one that waits.
        """
        last = "ping" if self.transport.comes_and_goes else "subscribe"
        with trio.fail_after(SECONDS):
            while not self.wishes or self.wishes[-1]["type"] != last:
                await self.answer()
            await trio.testing.wait_all_tasks_blocked()  # while a poll is being begun it takes everything

    async def answer_on(self) -> None:
        """Answers a client that polls for as long as it does; another says nothing."""
        while self.transport.comes_and_goes:
            await self.answer()

    async def answer(self) -> None:
        inbound = await self.transport.receive()
        assert isinstance(inbound, Text), inbound
        wish = json.loads(inbound.data)
        self.wishes.append(wish)
        replies: dict[str, tuple[str, dict[str, Any]]] = {
            "authenticate": ("connection.authenticated", USER),
            "subscribe": ("subscribed", {"channel": ["a"], "refused": [], "recovered": True, "live": True}),
            "ping": ("pong", {}),
        }
        kind, payload = replies[wish["type"]]
        reply = {"type": kind, "payload": {**payload, "position": "inc-0"}}
        if "messageId" in wish:
            reply["messageId"] = wish["messageId"]
        async with self.sending:
            await send(self.transport, self.transport.frame(json.dumps(reply).encode()))

    def event(self, number: int, size: int = 0, *, marked: bool = False) -> bytes:
        """The bytes of an event for this link."""
        body = b'{"number":%d,"pad":"%b"}' % (number, b"x" * size)
        framed = frames.event(frames.event_head("a", "inc"), number + 1, body, None)
        framing = self.transport.framing
        return framed if framing is None else framing(framed, marked)

    @property
    def numbers(self) -> list[int]:
        """Those of the events that the client has got."""
        return [each["payload"]["event"]["number"] for each in self.peer.messages if each["type"] == "event"]


@attrs.define(eq=False)
class Door:
    """A port's `serve` that gives each link to a test, and cuts it at the end."""

    arrived: trio.MemorySendChannel[Transport]
    done: trio.Event = attrs.Factory(trio.Event)

    async def serve(self, transport: Transport, hello: Hello) -> None:
        try:
            await send(transport, hello.response)
            await self.arrived.send(transport)
            await self.done.wait()
        finally:
            transport.abort()


Tls: TypeAlias = "tuple[ssl.SSLContext, ssl.SSLContext]"


@asynccontextmanager
async def real(
    tls: Tls | None, make: Callable[[tuple[str, int], trio.Nursery], AbstractAsyncContextManager[Peer]]
) -> AsyncIterator[Opened]:
    """A link over a real port and real sockets."""
    arrived, arrivals = trio.open_memory_channel[Any](1)
    door = Door(arrived)
    async with running(tls=tls, serve=door.serve) as port, trio.open_nursery() as nursery:
        async with make(port.address, nursery) as peer:
            with trio.fail_after(SECONDS):
                transport = await arrivals.receive()
            try:
                yield Opened(transport, peer)
            finally:
                door.done.set()
        nursery.cancel_scope.cancel()


def by_socket(
    kind: type[SocketPeer], request: bytes, trusting: ssl.SSLContext | None
) -> Callable[[tuple[str, int], trio.Nursery], AbstractAsyncContextManager[Peer]]:
    @asynccontextmanager
    async def opened(address: tuple[str, int], nursery: trio.Nursery) -> AsyncIterator[Peer]:
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        await raw.connect(address)
        tcp = trio.SocketStream(raw)
        stream: trio.abc.Stream = tcp
        if trusting is not None:
            stream = trio.SSLStream(tcp, trusting, server_hostname="localhost", https_compatible=True)
        try:
            peer = kind(tcp=tcp, stream=stream)
            await stream.send_all(request)
            yield peer
        finally:
            await trio.aclose_forcefully(stream)

    return opened


@asynccontextmanager
async def by_polls(address: tuple[str, int], nursery: trio.Nursery) -> AsyncIterator[Peer]:
    peer = PollPeer(address=address, nursery=nursery)
    peer.begin()
    yield peer
    peer.polling.cancel()


def by_sse(version: bytes, tls: Tls | None = None) -> AbstractAsyncContextManager[Opened]:
    request = b"GET %b HTTP/%b\r\nHost: a\r\nAuthorization: Bearer t\r\n\r\n"
    wish = target("/sse", ["a"]).encode()
    return real(tls, by_socket(SsePeer, request % (wish, version), tls and tls[1]))


@asynccontextmanager
async def in_memory(link: ScriptedLink) -> AsyncIterator[Opened]:
    yield Opened(link, ScriptedPeer(link=link))


# Each is given what TLS needs: the server's context and the client's.
KINDS: dict[str, Callable[[Tls], AbstractAsyncContextManager[Opened]]] = {
    "websocket": lambda _: real(None, by_socket(WebSocketPeer, head(), None)),
    "websocket over TLS": lambda tls: real(tls, by_socket(WebSocketPeer, head(), tls[1])),
    "sse": lambda _: by_sse(b"1.1"),
    "sse over HTTP/1.0": lambda _: by_sse(b"1.0"),
    "sse over TLS": lambda tls: by_sse(b"1.1", tls),
    "poll": lambda _: real(None, by_polls),
    "scripted": lambda _: in_memory(ScriptedLink(room=RECEIVE_BUFFER)),
    "scripted, all or nothing": lambda _: in_memory(ScriptedLink(room=RECEIVE_BUFFER, partial_sends=False)),
    "scripted stream": lambda _: in_memory(ScriptedStream(room=RECEIVE_BUFFER)),
}
