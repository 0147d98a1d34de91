"""The process that publishes: paced, or as fast as what it publishes arrives."""

from __future__ import annotations

import itertools
import json
import math
import random
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import attrs

from broker.bench.meter import now
from broker.bench.payload import event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection

    from broker.bench.meter import Meter

BATCH = 64  # events at once where there is no pace
PAUSE_SECONDS = 0.0002  # before another look at how much has arrived
PATIENCE_SECONDS = 30.0  # without anything arriving
WAIT_SECONDS = 10.0


@attrs.frozen(kw_only=True)
class Order:
    """What to publish: events of `size` bytes, to the subjects in turn, or by `weights` at random.

    It ends after `count` events or `seconds`. `copies` is how many deliveries an event of each subject makes.
    `rate` is in events/s; without one no more than about `window` events are ahead of the deliveries.
    """

    copies: Mapping[str, int]
    size: int
    count: int = 1 << 60
    seconds: float = math.inf
    rate: float = 0.0
    weights: Sequence[float] = ()
    seed: int = 1
    window: int = 2000

    @property
    def subjects(self) -> list[str]:
        return list(self.copies)


@attrs.define(eq=False)
class Publisher:
    """One connection to NATS that only publishes (NATS client protocol, `PUB`)."""

    socket: socket.socket
    meter: Meter
    numbers: dict[str, int] = attrs.field(factory=dict)  # of the last event of each subject

    def carry_out(self, order: Order) -> Counter[str]:
        """Publishes it; how many events of each subject."""
        rng = random.Random(order.seed)  # noqa: S311  a load that can be repeated
        subjects = order.subjects
        turns = itertools.cycle(subjects)
        published: Counter[str] = Counter()
        began = time.monotonic()
        base = self.meter["delivered"]
        done = expected = 0
        while done < order.count and (elapsed := time.monotonic() - began) < order.seconds:
            due = min(order.count, int(elapsed * order.rate) + 1 if order.rate else done + BATCH)
            if due <= done:
                time.sleep(max(0.0, began + done / order.rate - time.monotonic()))
                continue
            if not order.rate and done:
                self.wait(base + expected - order.window * expected // done)
            if order.weights:
                chosen = rng.choices(subjects, order.weights, k=due - done)
            else:
                chosen = list(itertools.islice(turns, due - done))
            self.socket.sendall(b"".join(self.line(subject, order.size) for subject in chosen))
            published.update(chosen)
            expected += sum(order.copies[subject] for subject in chosen)
            done = due
        self.flush()
        return published

    def line(self, subject: str, size: int) -> bytes:
        number = self.numbers[subject] = self.numbers.get(subject, 0) + 1
        body = event(now(), number, size)
        return b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(body), body)

    def wait(self, wanted: int) -> None:
        """Until so much has been delivered. Raises `TimeoutError`."""
        seen, until = -1, 0.0
        while (delivered := self.meter["delivered"]) < wanted:
            if delivered > seen:
                seen, until = delivered, time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > until:
                raise TimeoutError(f"{wanted - seen} deliveries are missing")
            time.sleep(PAUSE_SECONDS)

    def flush(self) -> None:
        """Until the server has taken everything."""
        self.socket.sendall(b"PING\r\n")
        answer = b""
        while b"PONG\r\n" not in answer:  # a PING of the server may follow it
            data = self.socket.recv(65536)
            if not data or b"-ERR" in data:
                raise ConnectionError(f"NATS: {data.decode(errors='replace').strip() or 'closed'}")
            answer += data


def connect(url: str) -> socket.socket:
    """A connection to NATS, ready for `PUB`."""
    parts = urlsplit(url)
    opened = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 4222), WAIT_SECONDS)
    opened.settimeout(WAIT_SECONDS)
    options: dict[str, object] = {"verbose": False, "pedantic": False, "name": "broker bench"}
    if parts.username:
        options |= {"user": unquote(parts.username), "pass": unquote(parts.password or "")}
    opened.sendall(b"CONNECT %b\r\n" % json.dumps(options).encode())
    return opened


def run(url: str, meter: Meter, pipe: Connection) -> None:
    """Carries out orders until the other end of the pipe is closed."""
    with connect(url) as opened:
        publisher = Publisher(opened, meter)
        publisher.flush()
        pipe.send("ready")
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(publisher.carry_out(order))
            except (OSError, TimeoutError) as error:
                pipe.send(error)
