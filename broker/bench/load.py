"""The process that takes the load in: thousands of clients on one epoll, reading into one buffer.

It counts into the shared memory of a `Meter`. In `exact` mode every frame is looked at and heartbeats are
answered. Else, for loads of millions of deliveries a second, what a client has got is told by the number of
its newest event, and only of a sampled client is each event looked at.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from broker.bench.dialects import masked, position
from broker.bench.meter import FIELDS, now
from broker.bench.payload import FOUND, LENGTH, MARK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from broker.bench.dialects import Dialect
    from broker.bench.meter import Meter

OPENING = 128  # handshakes at the same time; a server's queue of new connections is finite
BUFFER = 1 << 20
WAIT_SECONDS = 0.05
SEAM = len(MARK) - 1  # bytes on each side of where two reads meet: a mark may lie across
RETRY_NS = 100_000_000  # before another attempt to connect
LINGER = struct.pack("ii", 1, 0)  # close by RST: no port is left waiting
DELIVERED, LIVE, LOST, DISORDER, GAPS, COMPLETE = range(len(FIELDS))


@attrs.frozen(kw_only=True)
class Load:
    """`clients` at one address. Of every `sampled`-th one the latencies are measured.

    `ordered`: each follows one channel, whose events are numbered without a hole, the first after `before`;
    without `exact` that is taken for granted.
    """

    host: str
    port: int
    clients: Sequence[Dialect]
    exact: bool
    sampled: int = 1
    ordered: bool = False
    before: int = 0


@attrs.frozen
class Open:
    """Connects the clients of a range; `again`: with the positions that they have."""

    first: int
    end: int
    again: bool = False


@attrs.frozen
class Cut:
    """Ends the connections of a range, abruptly."""

    first: int
    end: int


@attrs.frozen
class Mute:
    """The clients of a range stop reading, or read again."""

    first: int
    end: int
    muted: bool


@attrs.frozen
class Goal:
    """Counts as complete who has got the event of this number."""

    number: int


@attrs.frozen
class Where:
    """Asks for the last position that a client was told."""

    index: int


Command: TypeAlias = Open | Cut | Mute | Goal | Where
Stage = Literal["away", "connecting", "upgrading", "joining", "live"]


class Client:
    """One connection. `number` is that of its last event, `last` the last message with a position."""

    __slots__ = ("began", "dialect", "index", "last", "muted", "number", "rest", "socket", "stage")

    def __init__(self, index: int, dialect: Dialect, number: int) -> None:
        self.index = index
        self.dialect = dialect
        self.socket: socket.socket | None = None
        self.stage: Stage = "away"
        self.rest = b""
        self.last = b""
        self.number = number
        self.began = 0
        self.muted = False


class Generator:
    """Works for ever, by commands from the pipe."""

    def __init__(self, load: Load, meter: Meter, pipe: Connection) -> None:
        self.load = load
        self.meter = meter
        self.numbers = meter.numbers
        self.pipe = pipe
        self.poll = select.epoll()
        self.poll.register(pipe.fileno(), select.EPOLLIN)
        self.clients = [Client(index, dialect, load.before) for index, dialect in enumerate(load.clients)]
        self.by_file: dict[int, Client] = {}
        self.waiting: deque[Client] = deque()  # to be connected
        self.opening = 0
        self.again = False
        self.goal = 0
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)

    def run(self) -> None:
        while True:
            for file, events in self.poll.poll(WAIT_SECONDS if not self.waiting else 0.001):
                client = self.by_file.get(file)
                if client is not None:
                    self.ready(client, events)
                elif file == self.pipe.fileno():
                    try:
                        self.carry_out(self.pipe.recv())
                    except EOFError:
                        return
            while self.waiting and self.opening < OPENING:
                self.connect(self.waiting.popleft())

    def carry_out(self, command: Command) -> None:
        match command:
            case Open(first, end, again):
                self.again = again
                self.waiting.extend(self.clients[first:end])
            case Cut(first, end):
                for client in self.clients[first:end]:
                    self.close(client)
            case Mute(first, end, muted):
                for client in self.clients[first:end]:
                    client.muted = muted
                    if client.socket:
                        self.poll.modify(client.socket.fileno(), 0 if muted else select.EPOLLIN)
            case Goal(number):
                self.goal = number
                self.numbers[COMPLETE] = sum(client.number >= number for client in self.clients)
            case Where(index):
                self.pipe.send(position(self.clients[index].last))
                return
        self.pipe.send("done")

    # --- opening and closing -----------------------------------------------------------------------

    def connect(self, client: Client) -> None:
        client.socket = opened = socket.socket()
        opened.setblocking(False)
        opened.connect_ex((self.load.host, self.load.port))
        self.by_file[opened.fileno()] = client
        self.poll.register(opened.fileno(), select.EPOLLOUT)
        client.stage, client.began, client.rest = "connecting", now(), b""
        self.opening += 1

    def ready(self, client: Client, events: int) -> None:
        opened = client.socket
        if opened is None:
            return  # closed since the poll
        try:
            if client.stage != "connecting":
                self.receive(client, opened)
            elif events & (select.EPOLLERR | select.EPOLLHUP):
                raise ConnectionError("refused")
            else:
                self.say(client, client.dialect.request())
                client.stage = "upgrading"
                self.poll.modify(opened.fileno(), select.EPOLLIN)
        except OSError:
            self.close(client)
            self.numbers[LOST] += 1
            self.waiting.append(client)

    def say(self, client: Client, data: bytes) -> None:
        """A few bytes on a fresh connection: the kernel takes them all."""
        if client.socket and client.socket.send(data) != len(data):
            raise ConnectionError("the server does not read")

    def close(self, client: Client) -> None:
        if client.socket is None:
            return
        del self.by_file[client.socket.fileno()]
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        client.socket.close()
        client.socket = None
        if client.stage == "live":
            self.numbers[LIVE] -= 1
        else:
            self.opening -= 1
        client.stage = "away"

    def live(self, client: Client) -> None:
        client.stage = "live"
        self.opening -= 1
        self.numbers[LIVE] += 1
        self.meter.openings.add(now() - client.began)

    # --- reading -----------------------------------------------------------------------------------

    def receive(self, client: Client, opened: socket.socket) -> None:
        size = opened.recv_into(self.buffer)
        if not size:
            raise ConnectionError("closed")
        if client.stage == "live" and not self.load.exact:
            self.count(client, size)
            return
        data = client.rest + self.buffer[:size]
        if client.stage == "upgrading":
            head, found_end, data = data.partition(b"\r\n\r\n")
            if not found_end:
                client.rest = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise ConnectionError(head.decode(errors="replace"))
            client.stage = "joining"
            self.join(client)
        client.rest = self.frames(client, data)

    def count(self, client: Client, size: int) -> None:
        """Counts by the number of the newest event; of a sampled client each event is looked at.

        `rest` is so much of what was read last that an event's mark and number may lie across.
        """
        if not client.index % self.load.sampled:
            data = client.rest + self.buffer[:size]
            at = data.rfind(MARK, max(0, len(data) - LENGTH + 1))
            end = at if at >= 0 else len(data)
            self.events(client, data[:end])
            client.rest = data[end:] or data[-SEAM:]
            return
        at = self.buffer.rfind(MARK, 0, size)
        if at >= 0 and at + LENGTH > size:  # its end comes with the next read
            at = self.buffer.rfind(MARK, 0, at)
        if at >= 0:
            number = int(self.buffer[at + LENGTH - 10 : at + LENGTH])
        elif found := FOUND.search(client.rest + self.buffer[: min(size, LENGTH)]):
            number = int(found[2])
        else:
            number = client.number
        self.numbers[DELIVERED] += number - client.number
        client.number = number
        tail = bytes(self.buffer[max(0, size - LENGTH + 1) : size])
        client.rest = tail if size >= LENGTH - 1 else (client.rest + tail)[1 - LENGTH :]

    def join(self, client: Client) -> None:
        words = client.dialect.join(position(client.last) if self.again else None)
        if words:
            self.say(client, words)
        else:
            self.live(client)

    def frames(self, client: Client, data: bytes) -> bytes:
        """Looks at each frame that is complete (RFC 6455, section 5.2); what is left."""
        at, end = 0, len(data)
        while at + 2 <= end:
            length, body = data[at + 1], at + 2
            if length == 126:
                length, body = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif length == 127:
                length, body = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if body + length > end:  # or a head that is not complete: `body` alone is behind the end
                break
            opcode = data[at] & 15
            payload = data[body : body + length]
            if opcode <= 2:
                self.message(client, payload)
            elif opcode == 9:
                self.say(client, masked(10, payload))
            elif opcode == 8:
                raise ConnectionError("closed by the server")
            at = body + length
        return data[at:]

    def message(self, client: Client, payload: bytes) -> None:
        if MARK in payload:
            self.events(client, payload)
        elif client.stage == "joining":
            if b'"subscribed"' in payload:
                client.last = payload
                if not self.load.exact:
                    self.live(client)  # what it gets from now on is only counted, the past as well
                    return
            if client.dialect.joined(payload):
                self.live(client)
        elif payload.startswith(b'{"type":"gap"'):
            self.numbers[GAPS] += 1

    def events(self, client: Client, payload: bytes) -> None:
        """One event, or several where the server puts more than one into a message."""
        self.numbers[DELIVERED] += payload.count(MARK)
        if self.load.exact:
            client.last = payload
        sampled = not client.index % self.load.sampled
        if not (sampled or self.load.ordered):
            return
        arrived = now()
        for sent, number in FOUND.findall(payload):
            if sampled:
                self.meter.latencies.add(arrived - int(sent))
            if self.load.ordered:
                following = int(number)
                if following != client.number + 1:
                    self.numbers[DISORDER] += 1
                client.number = following
                if following == self.goal:
                    self.numbers[COMPLETE] += 1


def run(load: Load, meter: Meter, pipe: Connection) -> None:
    """The process: connects nobody until it is told to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    pipe.send("ready")
    Generator(load, meter, pipe).run()
