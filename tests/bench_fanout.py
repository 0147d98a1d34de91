"""What a delivery costs: the broker beside a bare `send` loop, in one run, alternating.

    python -m tests.bench_fanout [--clients 1000] [--rate 100] [--seconds 5] [--rounds 3]

The floor is a loop in Python that sends the same bytes to as many sockets by non-blocking `send`, and does
nothing else. CPU is that of the serving process, user and system, from /proc. The clients live in a
process of their own, which only reads. Trust the ratio; the figures are the machine's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import socket
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from broker import app
from broker.auth import tokens
from broker.wire import frames
from tests.support.broker import configure
from tests.support.nats import run_nats
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from broker.config import Config

BODY = b'{"type":"order.moved","payload":"%b"}' % (b"x" * 92)  # 128 bytes
CHANNEL = "orders.7"
TICKS = os.sysconf("SC_CLK_TCK")
FRAME = frames.event(frames.event_head(CHANNEL, "hod2r7ft8a"), 1234567, BODY, None)


# --- the processes that serve ----------------------------------------------------------------------


def serve_broker(settings: Config, directory: Path, pipe: Connection) -> None:
    async def main() -> None:
        await app.serve(settings, data_dir=directory, on_ready=lambda running: pipe.send(running.ws))

    trio.run(main)


def serve_floor(clients: int, rate: float, seconds: float, pipe: Connection) -> None:
    """Accepts, waits for the word, sends each event to each client, paced."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    pipe.send(listener.getsockname()[1])
    peers = []
    for _ in range(clients):
        peer = listener.accept()[0]
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peers.append(peer)
    pipe.recv()
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        for peer in peers:
            peer.send(FRAME)
    pipe.recv()


# --- the process that reads ------------------------------------------------------------------------


def read_all(address: tuple[str, int], hello: bytes, clients: int, pipe: Connection) -> None:
    """Opens the connections, then counts bytes until it is told to stop, and reports them when asked."""
    poll = select.epoll()
    sockets = {}
    for _ in range(clients):
        peer = socket.create_connection(address)
        peer.sendall(hello)
        if hello:
            answered = b""
            while b'"type":"subscribed"' not in answered:
                answered += peer.recv(65536)
        peer.setblocking(False)
        sockets[peer.fileno()] = peer
        poll.register(peer.fileno(), select.EPOLLIN)
    pipe.send("connected")
    buffer = bytearray(1 << 18)
    received = 0
    while True:
        for number, _ in poll.poll(0.05):
            received += sockets[number].recv_into(buffer)
        if pipe.poll():
            if pipe.recv() == "stop":
                return
            pipe.send(received)


def masked(message: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    size = len(message)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2)
    return head + bytes(4) + message


def handshake(token: str) -> bytes:
    request = (
        "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    subscribe = masked(b'{"type":"subscribe","payload":{"channel":["orders.>","me.>"]}}')
    return request.encode() + subscribe


# --- one measurement -------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def process(target: Callable[..., None], *args: object) -> Iterator[tuple[int, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=target, args=(*args, theirs))
    child.start()
    try:
        yield child.pid or 0, ours
    finally:
        child.terminate()
        child.join(30)


def expect(reader: Connection, size: int, seconds: float) -> int:
    """Asks until that many bytes have come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        reader.send("count")
        received = int(reader.recv())
        if received >= size:
            return received
        time.sleep(0.02)
    raise SystemExit(f"only {received} of {size} bytes arrived")


def measure_floor(clients: int, rate: float, seconds: float) -> float:
    """CPU per delivery in microseconds."""
    with process(serve_floor, clients, rate, seconds) as (pid, server):
        port = server.recv()
        with process(read_all, ("127.0.0.1", port), b"", clients) as (_, reader):
            reader.recv()
            before = cpu_seconds(pid)
            server.send("go")
            events = int(rate * seconds)
            expect(reader, events * clients * len(FRAME), seconds + 30)
            return (cpu_seconds(pid) - before) / (events * clients) * 1e6


async def measure_broker(
    url: str, settings: Config, token: str, directory: Path, clients: int, rate: float, seconds: float
) -> float:
    """CPU per delivery in microseconds; the whole way from NATS to the sockets."""
    with process(serve_broker, settings, directory) as (pid, server):
        host, port = server.recv().removeprefix("ws://").removesuffix("/ws").split(":")
        with process(read_all, (host, int(port)), handshake(token), clients) as (_, reader):
            reader.recv()
            reader.send("count")
            already = reader.recv()
            async with connect(url) as publisher:
                before = cpu_seconds(pid)
                began = trio.current_time()
                events = int(rate * seconds)
                for number in range(events):
                    await trio.sleep_until(began + number / rate)
                    await publisher.publish(f"events.bench.{CHANNEL}", BODY)
                size = events * clients * (len(FRAME) - 6)  # the first positions are shorter
                await trio.to_thread.run_sync(expect, reader, already + size, seconds + 30)
                return (cpu_seconds(pid) - before) / (events * clients) * 1e6


async def main(clients: int, rate: float, seconds: float, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "nats").mkdir()
        async with run_nats(directory / "nats") as nats:
            settings = configure(
                directory / "broker",
                nats.url,
                limits={"connections_per_user": clients},
                log={"level": "error"},
            )
            token = tokens.sign(settings.auth, tenant="bench", user="bench", now=time.time(), ttl=3600)
            floors, brokers = [], []
            for number in range(rounds):
                floors.append(await trio.to_thread.run_sync(measure_floor, clients, rate, seconds))
                brokers.append(
                    await measure_broker(
                        nats.url, settings, token, directory / "broker", clients, rate, seconds
                    )
                )
                print(
                    f"round {number + 1}: floor {floors[-1]:.2f} µs, broker {brokers[-1]:.2f} µs", flush=True
                )
    floor, broker = statistics.median(floors), statistics.median(brokers)
    print(
        f"{clients} clients, {rate:g} events/s, {len(BODY)} B: CPU per delivery"
        f" floor {floor:.2f} µs, broker {broker:.2f} µs, ratio {broker / floor:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trio.run(main, options.clients, options.rate, options.seconds, options.rounds)
