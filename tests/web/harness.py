"""A running port with an echo behind it, and a client that may send whatever it likes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
from collections import Counter
from copy import copy
from typing import TYPE_CHECKING, Any

import attrs
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, TextMessage

from broker.actors.transport import Closed, Control, Hello, LinkLost, Text
from broker.config import Limits, Server
from broker.links.exchange import Backend
from broker.web.health import Health
from broker.web.listeners import open_listeners
from broker.web.routes import protocol, table
from broker.web.server import PublicPort
from broker.web.site import Site
from broker.wire.messages import Published
from tests.support.requests import TABLE

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Sequence

    from broker.actors.transport import Transport
    from broker.errors import BrokerError
    from broker.links.exchange import Serve
    from broker.links.route import ClientRoute
    from broker.wire.messages import Error

KEY = base64.b64encode(bytes(range(16))).decode()
FIN = 0x80
SECONDS = 30.0  # after which whatever is waited for is not coming
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def head(
    target: str = "/ws", *, method: str = "GET", version: str = "HTTP/1.1", **headers: str | None
) -> bytes:
    """A WebSocket handshake. A header given replaces the good one, `None` leaves it out; `_` is `-`."""
    good: dict[str, str | None] = {
        "host": "broker.example",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    good |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in good.items() if value is not None]
    return "\r\n".join([f"{method} {target} {version}", *lines, "\r\n"]).encode()


def frame(
    opcode: int, payload: bytes = b"", *, first: int = FIN, mask: bytes | None = b"\x01\x02\x03\x04"
) -> bytes:
    """A client's frame. `first` are the bits beside the opcode."""
    marked = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        start = struct.pack("!BB", first | opcode, marked | size)
    elif size < 65536:
        start = struct.pack("!BBH", first | opcode, marked | 126, size)
    else:
        start = struct.pack("!BBQ", first | opcode, marked | 127, size)
    if mask is None:
        return start + payload
    key = (mask * (size // 4 + 1))[:size]
    return start + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


@attrs.frozen(kw_only=True)
class Answer:
    """What came back to a request, read to its end. Status 0: the link was closed without a word."""

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        return document


@attrs.define(eq=False)
class Client:
    """Speaks to the port in bytes."""

    stream: trio.abc.Stream
    frames: Connection = attrs.field(factory=lambda: Connection(ConnectionType.CLIENT))
    patience: float = SECONDS

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        received = b""
        with trio.fail_after(self.patience), contextlib.suppress(trio.BrokenResourceError):
            async for data in self.stream:
                received += data
        return received

    async def answer(self) -> Answer:
        received = await self.rest()
        if not received:
            return Answer()
        start, _, body = received.partition(b"\r\n\r\n")
        line, *lines = start.decode("ascii").split("\r\n")
        return Answer(status=int(line.split(" ")[1]), headers=parsed(lines), body=body)

    async def upgrade(self, request: bytes | None = None) -> dict[str, str]:
        """Opens the WebSocket; the headers of the answer."""
        await self.send(head() if request is None else request)
        received = b""
        while b"\r\n\r\n" not in received:
            with trio.fail_after(self.patience):
                data = await self.stream.receive_some()
            assert data, received
            received += data
        start, _, rest = received.partition(b"\r\n\r\n")
        line, *lines = start.decode("ascii").split("\r\n")
        assert line == "HTTP/1.1 101 Switching Protocols", line
        self.frames.receive_data(rest)
        return parsed(lines)

    async def event(self) -> Event | None:
        """The next frame of the server by wsproto's reading, `None` at the end of the link."""
        while True:
            for event in self.frames.events():
                return event
            data: bytes | bytearray = b""
            with trio.fail_after(self.patience), contextlib.suppress(trio.BrokenResourceError):
                data = await self.stream.receive_some()
            if not data:
                return None
            self.frames.receive_data(bytes(data))

    async def closed(self) -> tuple[int, str]:
        """Code and reason of the server's Close, and that the link ends after it."""
        event = await self.event()
        while not isinstance(event, CloseConnection):
            assert event is not None, "the link ended without a Close"
            event = await self.event()
        with trio.fail_after(self.patience), contextlib.suppress(trio.BrokenResourceError):
            assert await self.stream.receive_some() == b""
        return int(event.code), event.reason or ""


@attrs.define(eq=False)
class Running:
    """A public port that serves an echo. `hellos` and `closes` are what the echo saw."""

    address: tuple[str, int]
    connections: trio.Nursery
    context: ssl.SSLContext | None = None  # the clients'
    acceptor: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    refusal: BrokerError | None = None
    reason: str | None = None
    hellos: list[Hello] = attrs.field(factory=list)
    closes: list[Closed] = attrs.field(factory=list)
    published: list[tuple[bytes, str, str | None]] = attrs.field(factory=list)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        tcp = await trio.open_tcp_stream(*self.address)
        if self.context is None:
            stream: trio.abc.Stream = tcp
        else:
            stream = trio.SSLStream(tcp, self.context, server_hostname="localhost", https_compatible=True)
        try:
            yield Client(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async def ask(self, request: bytes) -> Answer:
        async with self.client() as client:
            await client.send(request)
            return await client.answer()

    def admission(self, peer: str) -> contextlib.nullcontext[None]:
        if self.refusal:
            raise copy(self.refusal)  # an exception that has been raised holds whoever it came through
        return contextlib.nullcontext()

    async def echo(self, transport: Transport, hello: Hello) -> None:
        self.hellos.append(hello)
        with contextlib.ExitStack() as end, contextlib.suppress(LinkLost):
            end.callback(transport.abort)
            await send(transport, hello.response)
            while True:
                inbound = await transport.receive()
                if isinstance(inbound, Text):
                    await send(transport, transport.frame(inbound.data))
                elif isinstance(inbound, Control):
                    await send(transport, inbound.data)
                elif isinstance(inbound, Closed):
                    self.closes.append(inbound)
                    await send(transport, inbound.answer)
                    await transport.linger()
                    return

    async def post(self, message: bytes, *, token: str, tenant: str | None, peer: str) -> Published | Error:
        await trio.lowlevel.checkpoint()
        self.published.append((message, token, tenant))
        return Published(position="inc-1")

    async def works(self) -> None:
        """A client that behaves is served."""
        async with self.client() as client:
            await client.upgrade()
            await client.send(frame(TEXT, "grüß dich".encode()))
            event = await client.event()
            assert isinstance(event, TextMessage)
            assert event.data == "grüß dich"
            await client.send(frame(CLOSE, b"\x03\xe8"))
            assert await client.closed() == (1000, "")

    async def peers(self) -> list[str]:
        """Who the clients were, once all of them are gone."""
        await self.settled()
        return [hello.peer for hello in self.hellos]

    async def settled(self) -> None:
        """No connection is left of those that were."""
        await eventually(lambda: not self.connections.child_tasks)


def parsed(lines: list[str]) -> dict[str, str]:
    pairs = (line.split(": ", 1) for line in lines)
    return {name.lower(): value for name, value in pairs}


def offer(transport: Transport, data: bytes | memoryview) -> int:
    """How much of it the transport accepts at once."""
    try:
        return transport.send_nowait(data)
    except BlockingIOError:
        return 0


async def send(transport: Transport, data: bytes) -> None:
    rest = memoryview(data)
    rest = rest[offer(transport, rest) :]
    while rest:
        rest = rest[await transport.send_some(rest) :]


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS):
        while not condition():
            await trio.sleep(0.002)


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/dev/fd"))


@contextlib.asynccontextmanager
async def running(
    *,
    server: Server | None = None,
    limits: Limits | None = None,
    listen: str = "127.0.0.1:0",
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    site: Site | None = None,
    routes: Sequence[ClientRoute] = (),
    serve: Serve | None = None,
) -> AsyncIterator[Running]:
    """A real port on real sockets; when it is left, nothing of it may be there any more."""
    base = descriptors()
    listeners = await open_listeners(listen, 128)
    async with trio.open_nursery() as accepting, trio.open_nursery() as connections:
        run = Running(
            address=listeners[0].getsockname()[:2],
            connections=connections,
            context=tls[1] if tls else None,
        )
        site = site or Site()
        port = PublicPort(
            Backend(
                server=server or Server(),
                limits=limits or Limits(),
                serve=serve or run.echo,
                admission=run.admission,
                responses=Counter(),
            ),
            table(protocol(run.post, TABLE), Health(lambda: run.reason).routes(), site.routes(), routes),
            development=site.development,
            ssl_context=tls[0] if tls else None,
        )

        async def accept(task_status: trio.TaskStatus[None]) -> None:
            with run.acceptor:
                await port.run(listeners, nursery=connections, task_status=task_status)

        await accepting.start(accept)
        yield run
        await run.settled()
        run.acceptor.cancel()
    assert descriptors() == base
