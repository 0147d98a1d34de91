"""The processes of `requests`: who asks, over the broker or by nats-py, and the service that answers both."""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from broker.bench.dialects import masked
from broker.bench.load import DELIVERED
from broker.bench.meter import now
from broker.bench.payload import FOUND, LENGTH, event
from broker.bench.publisher import WAIT_SECONDS, connect
from broker.nats import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from broker.bench.dialects import BrokerClient
    from broker.bench.meter import Meter

METHOD = "bench.echo"
AT_ONCE = 16  # of a connection; the broker allows as many
BUFFER = 1 << 18


@attrs.frozen(kw_only=True)
class Questions:
    """Ask `count` times with `size` bytes: `rate` a second, or one after the other without a rate."""

    count: int
    size: int
    rate: float = 0.0


def echo(url: str, subject: str, pipe: Connection) -> None:
    """The service: answers with what it is asked."""
    nats = connect(url)
    nats.settimeout(None)
    nats.sendall(protocol.subscribe(subject, 1) + protocol.PING)
    decoder = protocol.Decoder()
    poll = select.poll()
    poll.register(nats, select.POLLIN)
    poll.register(pipe, select.POLLIN)
    ready = False
    while pipe.fileno() not in dict(poll.poll()):
        events = decoder.receive(nats.recv(BUFFER))
        if not ready and protocol.Sign.PONG in events:
            ready = True
            pipe.send(0)
        asked = (each for each in events if isinstance(each, tuple))
        nats.sendall(b"".join(protocol.publish(reply.decode(), body) for _, _, reply, _, body in asked))


def ask_by_nats(url: str, subject: str, meter: Meter, pipe: Connection) -> None:
    """nats-py alone: one request after the other."""
    import nats

    async def main() -> None:
        client = await nats.connect(url, max_reconnect_attempts=0)
        pipe.send(0)
        while True:
            try:
                questions: Questions = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            pipe.send(0)
            for number in range(questions.count):
                began = now()
                await client.request(subject, event(began, number, questions.size), timeout=WAIT_SECONDS)
                meter.latencies.add(now() - began)
                meter.numbers[DELIVERED] += 1

    asyncio.run(main())


class Asker:
    """Asks over WebSockets. What is late counts from when it was due (and not from when there was room)."""

    def __init__(self, clients: Sequence[BrokerClient], meter: Meter) -> None:
        self.meter = meter
        self.poll = select.epoll()
        self.peers: dict[int, socket.socket] = {}
        self.rests: dict[int, bytes] = {}
        self.free: deque[int] = deque()  # each connection as often as it may ask
        for client in clients:
            self.open(client)
        self.free.extend(list(self.peers) * AT_ONCE)

    def open(self, client: BrokerClient) -> None:
        host, _, port = client.host.rpartition(":")
        peer = socket.create_connection((host, int(port)), WAIT_SECONDS)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(client.request())
        said = b""
        while b'"connection.authenticated"' not in said:
            data = peer.recv(BUFFER)
            if not data:
                raise ConnectionError(said.decode(errors="replace"))
            said += data
        peer.setblocking(False)
        self.peers[peer.fileno()] = peer
        self.rests[peer.fileno()] = b""
        self.poll.register(peer.fileno(), select.EPOLLIN)

    def carry_out(self, questions: Questions) -> None:
        """Ask them all; the time that they took together goes to `openings`."""
        rate, count = questions.rate, questions.count
        began = now()
        asked = answered = 0
        while answered < count:
            elapsed = (now() - began) / 1e9
            due = min(count, int(elapsed * rate) + 1) if rate else answered + 1
            while asked < due and self.free:
                self.ask(began + int(asked / rate * 1e9) if rate else now(), asked, questions.size)
                asked += 1
            wait = max(0.0, asked / rate - elapsed) if rate and self.free and asked < count else WAIT_SECONDS
            for file, _ in self.poll.poll(wait):
                answered += self.receive(file)
        self.meter.openings.add(now() - began)

    def ask(self, due: int, number: int, size: int) -> None:
        file = self.free.popleft()
        payload = b'{"method":"%b","data":%b}' % (METHOD.encode(), event(due, number, size))
        frame = masked(1, b'{"type":"request","payload":%b,"messageId":"%d"}' % (payload, number))
        if self.peers[file].send(frame) != len(frame):
            raise ConnectionError("the broker does not read")

    def receive(self, file: int) -> int:
        """How many answers have arrived on a connection."""
        data = self.peers[file].recv(BUFFER)
        if not data:
            raise ConnectionError("closed by the broker")
        data = self.rests[file] + data
        if b'{"type":"error"' in data:
            raise ConnectionError(data.decode(errors="replace"))
        arrived, found, end = now(), 0, 0
        for each in FOUND.finditer(data):
            self.meter.latencies.add(arrived - int(each[1]))
            found, end = found + 1, each.end()
        self.rests[file] = data[max(end, len(data) - LENGTH + 1) :]
        self.meter.numbers[DELIVERED] += found
        self.free.extend([file] * found)
        return found


def run(clients: Sequence[BrokerClient], meter: Meter, pipe: Connection) -> None:
    """Asks what it is told to, until the other end of the pipe is closed."""
    with reported(pipe):
        asker = Asker(clients, meter)
        pipe.send(0)
        while True:
            questions = pipe.recv()
            pipe.send(0)
            asker.carry_out(questions)


@contextmanager
def reported(pipe: Connection) -> Iterator[None]:
    """Tell an error to the other end of the pipe, and do nothing more until that is closed."""
    with suppress(EOFError):
        try:
            yield
        except OSError as error:
            pipe.send(error)
            while True:
                pipe.recv()
