"""The transport itself, over a pair of connected sockets: time, sending, and the end."""

from __future__ import annotations

import contextlib
import math
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.actors.transport import Alive, Closed, LinkLost, Text
from broker.config import Limits
from broker.errors import CloseCode
from broker.links.tcp import UNSENT_BYTES, Link
from broker.links.websocket.transport import MESSAGE_SECONDS, WebSocketTransport
from broker.wire import frames
from tests.support.seeds import simulated
from tests.web.harness import CLOSE, CONTINUATION, PING, PONG, SECONDS, TEXT, frame, offer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.actors.transport import Inbound, Transport

HALVES = {
    "head": b"\x81",
    "longer head": b"\x81\xfe\x01",
    "frame": frame(TEXT, b"hello")[:8],
    "fragment": frame(TEXT, b"hello", first=0),
    "ping": frame(PING, b"hello")[:8],
}


@pytest.fixture
async def pair() -> AsyncIterator[tuple[WebSocketTransport, socket.socket]]:
    """A transport on a TCP connection, and the client's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        raw, _ = listener.accept()
    client.setblocking(False)
    transport = WebSocketTransport(Link(raw, "peer"), Limits().message_bytes)
    try:
        yield transport, client
    finally:
        transport.abort()
        client.close()


Pair = tuple[WebSocketTransport, socket.socket]


async def receiving(transport: Transport, clock: MockClock, seconds: float) -> Inbound:
    """What `receive` returns once so much time has passed."""
    received: list[Inbound] = []

    async def receive() -> None:
        received.append(await transport.receive())

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked(0.01)
            assert not received
            clock.jump(seconds)
    return received[0]


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_half_a_frame_and_silence(pair: Pair, mock_clock: MockClock, half: bytes) -> None:
    """Whatever is begun and not completed in time ends the connection with 4009."""
    transport, client = pair
    client.sendall(frame(TEXT, b"whole") + half)
    assert await transport.receive() == Text(data=b"whole")
    closed = await receiving(transport, mock_clock, MESSAGE_SECONDS + 1)
    assert isinstance(closed, Closed)
    assert closed.code == CloseCode.HEARTBEAT
    assert closed.answer == frames.close(closed.code, closed.reason)


async def test_silence_at_rest(pair: Pair, mock_clock: MockClock) -> None:
    """A client that has nothing to say may be silent for ever, and nothing is held for it meanwhile."""
    transport, client = pair
    client.sendall(frame(TEXT, b"a", first=0) + frame(CONTINUATION, b"b") + frame(PONG))
    assert await transport.receive() == Text(data=b"ab")
    assert await transport.receive() == Alive()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await transport.receive() == Text(data=b"at last")

        await wait_all_tasks_blocked(0.01)
        assert transport.arrival is None
        mock_clock.jump(100 * MESSAGE_SECONDS)
        await wait_all_tasks_blocked(0.01)
        client.sendall(frame(TEXT, b"at last"))


async def test_deadline_is_of_one_message(pair: Pair, mock_clock: MockClock) -> None:
    """Fragments and pings within it do not prolong a message; the next message has a time of its own."""
    transport, _ = pair
    transport.feed(frame(TEXT, b"a", first=0))
    arrival = transport.arrival
    assert arrival
    assert arrival.deadline == MESSAGE_SECONDS
    mock_clock.jump(20)
    transport.feed(frame(CONTINUATION, b"b", first=0) + frame(PING) + frame(CONTINUATION, b"cc")[:7])
    assert arrival.deadline == MESSAGE_SECONDS
    transport.feed(frame(CONTINUATION, b"cc")[7:] + frame(TEXT, b"d")[:6])
    assert arrival.deadline == 20 + MESSAGE_SECONDS
    transport.feed(frame(TEXT, b"d")[6:])
    assert arrival.deadline == math.inf


async def test_send(pair: Pair) -> None:
    """What the kernel does not take is said, and waiting works; in the end all of it has arrived."""
    transport, client = pair
    data = bytes(range(256)) * 64 * 256
    sent = transport.send_nowait(data)
    assert 0 < sent < len(data)
    while taken := offer(transport, memoryview(data)[sent:]):
        sent += taken
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
    received = bytearray()

    async def read() -> None:
        while len(received) < len(data):
            received.extend(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while sent < len(data):
            taken = await transport.send_some(memoryview(data)[sent:])
            assert taken > 0
            sent += taken
    assert received == data


async def test_unread_bytes_are_bounded(pair: Pair) -> None:
    """The kernel holds little for a client that reads nothing, beside what the client's own side takes."""
    transport, _ = pair
    assert transport.link.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
    assert transport.link.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_reset(pair: Pair) -> None:
    """A reset ends receiving with 1006 and sending with the socket's own error, or with `LinkLost`."""
    transport, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert await transport.receive() == Closed(code=1006, by="link")
    with pytest.raises(BrokenPipeError):
        transport.send_nowait(b"a")
    with pytest.raises(LinkLost):
        await transport.send_some(b"a")


@simulated(15)
async def test_cut_in_the_middle(pair: Pair, seed: int) -> None:
    """A client that leaves within a frame, under whatever mask, is one that has left, and nothing worse."""
    transport, client = pair
    rng = random.Random(seed)
    opcode = rng.choice((TEXT, CONTINUATION, PING, PONG, CLOSE))
    whole = frame(opcode, rng.randbytes(rng.randint(2, 120)), mask=rng.randbytes(4))
    begun = frame(TEXT, b"\xc3", first=0) if opcode == CONTINUATION else b""
    client.send(begun + whole[: rng.randint(1, len(whole) - 1)])
    client.close()
    with trio.fail_after(30):
        while not isinstance(await transport.receive(), Closed):
            pass
    transport.abort()


async def test_abort(pair: Pair) -> None:
    """An abort wakes the receiver, resets the client, and may come twice."""
    transport, client = pair
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await transport.receive() == Closed(code=1006, by="link")

        await wait_all_tasks_blocked(0.01)
        transport.abort()
    transport.abort()
    with pytest.raises(ConnectionResetError):
        await trio.socket.from_stdlib_socket(client).recv(1)
    with pytest.raises(OSError, match="descriptor"):
        transport.send_nowait(b"a")


async def test_linger(pair: Pair) -> None:
    """The last frame arrives though the client was still sending, and the wait ends when it leaves."""
    transport, client = pair
    client.sendall(b"unread" * 1000)
    peer = trio.socket.from_stdlib_socket(client)
    transport.send_nowait(transport.close(CloseCode.GOING_AWAY, "bye"))
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.link.linger, 10 * SECONDS)
            assert await peer.recv(100) == b"\x88\x05\x03\xe9bye"
            assert await peer.recv(100) == b""
            client.close()


async def test_linger_has_an_end(pair: Pair, mock_clock: MockClock) -> None:
    """A client that stays and sends is waited for two seconds."""
    transport, client = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.linger)
        await wait_all_tasks_blocked(0.01)
        with contextlib.suppress(OSError):
            client.sendall(b"more")
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(2)


async def test_frames(pair: Pair) -> None:
    """What is sent is as RFC 6455 has it in section 5.7."""
    transport, _ = pair
    assert transport.frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert transport.ping(None) == bytes.fromhex("8900")
    assert transport.close(1000, "") == bytes.fromhex("880203e8")
