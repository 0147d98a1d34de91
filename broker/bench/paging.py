"""The processes of `pages`: who reads back, over the broker or by nats-py, and who publishes meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import select
import socket
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Any

import attrs

from broker.bench.asking import reported
from broker.bench.dialects import masked
from broker.bench.load import DELIVERED
from broker.bench.meter import now
from broker.bench.payload import event
from broker.bench.publisher import WAIT_SECONDS, connect
from broker.nats import protocol
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from broker.bench.dialects import BrokerClient
    from broker.bench.meter import Meter

EVENTS = 50  # of a page
BUFFER = 1 << 18
INBOX = "_INBOX.bench."
UPGRADED = b"\r\n\r\n"


@attrs.frozen(kw_only=True)
class Walk:
    """Read `count` pages back, or for `seconds`: each connection from the sequence `upto` on (0: the newest).

    They read the `channels` in turn. Who has come to the sequence `floor` begins anew.
    """

    channels: Sequence[str]
    count: int = 1 << 60
    seconds: float = math.inf
    upto: int = 0
    floor: int = 0


@attrs.frozen(kw_only=True)
class Publish:
    """Publish `count` events of `size` bytes, `rate` a second, each with an acknowledgement."""

    count: int
    rate: float
    size: int


@attrs.define(eq=False)
class Reader:
    """One connection that reads a page after the other."""

    client: BrokerClient
    socket: socket.socket = attrs.field(init=False)
    buffer: bytearray = attrs.Factory(bytearray)
    channel: str = ""
    before: str = ""
    began: int = 0

    def __attrs_post_init__(self) -> None:
        host, _, port = self.client.host.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), WAIT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(self.client.request())
        while b'"connection.authenticated"' not in self.buffer:
            self.receive()
        del self.buffer[: self.buffer.index(UPGRADED) + len(UPGRADED)]

    def receive(self) -> None:
        data = self.socket.recv(BUFFER)
        if not data:
            raise ConnectionError("closed by the broker")
        self.buffer += data

    def pages(self) -> Iterator[dict[str, Any]]:
        """The pages that have arrived. Raises `ConnectionError` for an error."""
        for payload in frames.take(self.buffer):
            message = json.loads(payload)
            if message["type"] == "error":
                raise ConnectionError(payload.decode())
            if message["type"] == "history":
                yield message["payload"]

    def ask(self) -> None:
        """Ask for the page below `before`, or the newest."""
        payload: dict[str, Any] = {"channel": self.channel, "limit": EVENTS}
        if self.before:
            payload["before"] = self.before
        self.began = now()
        self.socket.sendall(masked(1, json.dumps({"type": "history", "payload": payload}).encode()))


class Readers:
    """Connections that read at once, each one page at a time."""

    def __init__(self, clients: Sequence[BrokerClient], meter: Meter) -> None:
        self.meter = meter
        self.poll = select.epoll()
        self.readers = {}
        for client in clients:
            reader = Reader(client)
            self.readers[reader.socket.fileno()] = reader
            self.poll.register(reader.socket.fileno(), select.EPOLLIN)

    def carry_out(self, walk: Walk) -> None:
        """Read the pages; what each took is a latency."""
        left, until = walk.count - len(self.readers), now() + walk.seconds * 1e9
        start = f"{self.incarnation}-{walk.upto + 1}" if walk.upto else ""
        for reader, channel in zip(self.readers.values(), cycle(walk.channels)):
            reader.channel, reader.before = channel, start
            reader.ask()
        reading = len(self.readers)
        while reading:
            for file, _ in self.poll.poll(WAIT_SECONDS):
                reader = self.readers[file]
                reader.receive()
                arrived = now()
                for page in reader.pages():
                    self.meter.latencies.add(arrived - reader.began)
                    self.meter.numbers[DELIVERED] += 1
                    ended = not page["more"] or sequence(page["first"]) <= walk.floor + 1
                    reader.before = start if ended else page["first"]
                    reading -= 1
                    if left and now() < until:
                        reader.ask()
                        left, reading = left - 1, reading + 1

    @cached_property
    def incarnation(self) -> str:
        """Which stream it is."""
        reader = next(iter(self.readers.values()))
        reader.channel = "nothing"
        reader.ask()
        while not (found := list(reader.pages())):
            reader.receive()
        return str(found[0]["last"].rpartition("-")[0])


def sequence(position: str) -> int:
    return int(position.rpartition("-")[2])


def run(clients: Sequence[BrokerClient], meter: Meter, pipe: Connection) -> None:
    """Reads what it is told to, until the other end of the pipe is closed."""
    with reported(pipe):
        readers = Readers(clients, meter)
        pipe.send(0)
        while True:
            walk = pipe.recv()
            pipe.send(0)
            readers.carry_out(walk)


def consume(url: str, stream: str, subject: str, meter: Meter, pipe: Connection) -> None:
    """nats-py alone: a consumer for each page, which is the first one after `floor`."""
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    async def page(js: Any, after: int) -> None:
        wanted = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            filter_subject=subject,
            mem_storage=True,
        )
        made = await js.add_consumer(stream, wanted)
        reader = await js.pull_subscribe_bind(consumer=made.name, stream=stream)
        if count := min(EVENTS, made.num_pending):
            await reader.fetch(count, timeout=WAIT_SECONDS)
        await reader.unsubscribe()
        await js.delete_consumer(stream, made.name)

    async def main() -> None:
        client = await nats.connect(url, max_reconnect_attempts=0)
        pipe.send(0)
        while True:
            walk: Walk = await asyncio.to_thread(pipe.recv)
            pipe.send(0)
            for _ in range(walk.count):
                began = now()
                await page(client.jetstream(), walk.floor)
                meter.latencies.add(now() - began)
                meter.numbers[DELIVERED] += 1

    with reported(pipe):
        asyncio.run(main())


def publish(url: str, subject: str, meter: Meter, pipe: Connection) -> None:
    """Publishes with acknowledgements, as it is told to."""
    with reported(pipe), connect(url) as nats:
        nats.sendall(protocol.subscribe(f"{INBOX}*", 1))
        decoder = protocol.Decoder()
        pipe.send(0)
        while True:
            order: Publish = pipe.recv()
            pipe.send(0)
            began, sent, acknowledged = now(), 0, 0
            while acknowledged < order.count:
                while sent < order.count and (due := began + int(sent / order.rate * 1e9)) <= now():
                    body = event(due, sent, order.size)
                    nats.sendall(protocol.publish(subject, body, reply=f"{INBOX}{due}"))
                    sent += 1
                patience = max(0.0, (due - now()) / 1e9) if sent < order.count else WAIT_SECONDS
                if select.select([nats], [], [], patience)[0]:
                    acknowledged += note(decoder.receive(nats.recv(BUFFER)), meter)


def note(events: Iterable[protocol.Event], meter: Meter) -> int:
    """Count acknowledgements. What is late counts from when it was due. Raises `ConnectionError`."""
    arrived, messages = now(), [each for each in events if isinstance(each, tuple)]
    for _, inbox, _, _, body in messages:
        if b'"error"' in body:
            raise ConnectionError(body.decode())
        meter.latencies.add(arrived - int(inbox.removeprefix(INBOX.encode())))
        meter.numbers[DELIVERED] += 1
    return len(messages)
