"""What others are compared with: processes that do one thing and nothing else.

Each is told where NATS is and what to do, says at which port it listens (0: nowhere), and works until the
other end of the pipe is closed.
"""

from __future__ import annotations

import asyncio
import select
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.bench.load import WAIT_SECONDS
from broker.bench.meter import FIELDS
from broker.bench.publisher import connect
from broker.wire import frames

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from broker.bench.meter import Meter

DELIVERED = FIELDS.index("delivered")
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
BACKLOG = 1024
PATIENCE_SECONDS = 120.0


ANSWER = b'{"type":"subscribed","payload":{"live":true}}'
SUBSCRIBED = bytes((0x81, len(ANSWER))) + ANSWER


def serve_bare(url: str, subject: str, channel: str, pipe: Connection) -> None:
    """The floor: a loop that sends the broker's bytes to each socket by non-blocking `send`.

    It takes the events from NATS as the broker does, makes the frame of each once, and checks nothing.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    nats = connect(url)
    nats.sendall(b"SUB %b 1\r\nPING\r\n" % subject.encode())
    head = frames.event_head(channel, "0")
    poll = select.epoll()
    for each in (listener, nats, pipe):
        poll.register(each.fileno(), select.EPOLLIN)
    opening: dict[int, socket.socket] = {}
    peers: dict[int, socket.socket] = {}
    buffer = b""
    sequence = 0
    pipe.send(listener.getsockname()[1])
    while True:
        for file, _ in poll.poll(WAIT_SECONDS):
            if file == listener.fileno():
                peer = listener.accept()[0]
                peer.setblocking(False)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opening[peer.fileno()] = peer
                poll.register(peer.fileno(), select.EPOLLIN)
            elif file == nats.fileno():
                bodies, buffer = messages(buffer + nats.recv(1 << 18))
                for body in bodies:
                    sequence += 1
                    frame = frames.event(head, sequence, body, None)
                    for peer in peers.values():
                        peer.send(frame)
            elif file == pipe.fileno():
                return
            elif file in opening:
                said = opening[file].recv(65536)
                opening[file].send(ACCEPTED if said.startswith(b"GET") else SUBSCRIBED)
                if not said.startswith(b"GET"):
                    peers[file] = opening.pop(file)
            elif gone(peers[file]):
                poll.unregister(file)
                peers.pop(file).close()


def gone(peer: socket.socket) -> bool:
    """Whether a client that has nothing to say has left."""
    try:
        return not peer.recv(65536)
    except ConnectionResetError:
        return True


def messages(data: bytes) -> tuple[list[bytes], bytes]:
    """The bodies of whole `MSG` in what NATS sent, and what is left."""
    found = []
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        line = data[at:end]
        if line.startswith(b"MSG"):
            size = int(line.rpartition(b" ")[2])
            if len(data) < end + size + 4:
                break
            found.append(data[end + 2 : end + 2 + size])
            end += size + 2
        at = end + 2
    return found, data[at:]


def serve_trio_websocket(pipe: Connection) -> None:
    """A plain trio-websocket server, which takes connections and does nothing with them."""
    import trio
    from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer
    from trio_websocket import serve_websocket as serve

    async def handle(request: WebSocketRequest) -> None:
        connection: WebSocketConnection = await request.accept()
        try:
            await connection.get_message()
        except ConnectionClosed:
            return

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: WebSocketServer = await nursery.start(
                partial(serve, handle, "127.0.0.1", 0, None, handler_nursery=nursery)
            )
            pipe.send(server.port)
            await trio.to_thread.run_sync(pipe.poll, None, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    trio.run(main)


def receive_by_callback(url: str, subject: str, meter: Meter, pipe: Connection) -> None:
    """nats-py alone: a core subscription that counts what its callback is given."""
    import nats

    async def main() -> None:
        async def count(message: Any) -> None:  # noqa: ARG001  it only counts
            meter.numbers[DELIVERED] += 1

        client = await nats.connect(url, max_reconnect_attempts=0)
        await client.subscribe(subject, cb=count, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        pipe.send(0)
        await asyncio.to_thread(pipe.poll, None)
        await client.close()

    asyncio.run(main())


def read_in_order(
    url: str, stream: str, subject: str, consumers: int, events: int, newest: bytes, pipe: Connection
) -> None:
    """nats-py alone: one ordered consumer for each client, over about the last `events` of the stream.

    Begins when it is told to, and says how many messages there were when each has got the one that holds
    `newest`.
    """
    import nats
    from nats.js.api import ConsumerConfig, DeliverPolicy

    async def main() -> None:
        client = await nats.connect(url, max_reconnect_attempts=0)
        jetstream = client.jetstream(timeout=PATIENCE_SECONDS)  # it answers late while the first ones read
        last = (await jetstream.stream_info(stream)).state.last_seq
        complete = asyncio.Event()
        seen, left = 0, consumers

        async def take(message: Any) -> None:
            nonlocal seen, left
            seen += 1
            if newest in message.data:
                left -= 1
                if not left:
                    complete.set()

        pipe.send(0)
        await asyncio.to_thread(pipe.recv)
        for _ in range(consumers):
            await jetstream.subscribe(
                subject,
                stream=stream,
                cb=take,
                ordered_consumer=True,
                config=ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(1, last - events)
                ),
                pending_msgs_limit=-1,
                pending_bytes_limit=-1,
            )
        await complete.wait()
        pipe.send(seen)
        await asyncio.to_thread(pipe.poll, None)
        await client.close()

    asyncio.run(main())
