"""The generator: what it counts is what there was, however it is cut up, and what is wrong is noticed."""

from __future__ import annotations

import multiprocessing
import random
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bench import load, payload
from broker.bench.dialects import Handshake
from broker.bench.meter import Meter, now
from broker.bench.publisher import Publisher
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = Handshake("localhost", "/")
HEAD = frames.event_head("orders.7", "hod2r7ft8a")


def make_generator(*, exact: bool, sampled: int = 1) -> load.Generator:
    pipe, _ = multiprocessing.Pipe()
    clients = [CLIENT] * 2
    told = load.Load(host="", port=0, clients=clients, exact=exact, sampled=sampled, ordered=True)
    generator = load.Generator(told, Meter(), pipe)
    for client in generator.clients:
        client.stage = "live"
    return generator


def events(numbers: Iterator[int] | range, size: int = 128) -> bytes:
    return b"".join(frames.event(HEAD, n, payload.event(now(), n, size), None) for n in numbers)


def feed(generator: load.Generator, client: load.Client, data: bytes, cuts: list[int]) -> None:
    """Gives a client the data in reads that end at `cuts`."""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if end > start:
            generator.buffer[: end - start] = data[start:end]
            if generator.load.exact:
                client.rest = generator.frames(client, client.rest + data[start:end])
            else:
                generator.count(client, end - start)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("index", [0, 1])
@given(data=st.data())
def test_each_event_is_counted_once(exact: bool, index: int, data: st.DataObject) -> None:
    """Wherever the reads end: in exact mode, of a sampled client, and of one that is counted by number."""
    count, size = data.draw(st.integers(0, 12)), data.draw(st.integers(90, 200))
    stream = events(range(1, count + 1), size)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    generator = make_generator(exact=exact, sampled=2)
    feed(generator, generator.clients[index], stream, cuts)
    assert generator.meter["delivered"] == count
    assert generator.clients[index].number == count
    assert generator.meter["disorder"] == 0
    sampled = index == 0
    assert sum(generator.meter.latencies.histogram().counts) == (count if sampled else 0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("numbers", [[1, 2, 4], [1, 2, 2, 3], [2, 3], [1, 3, 2]])
def test_holes_and_copies_are_noticed(exact: bool, numbers: list[int]) -> None:
    """A missing event, a second copy, the wrong order: each is disorder."""
    generator = make_generator(exact=exact)
    stream = events(iter(numbers))
    cut = random.Random(1).randrange(len(stream))
    feed(generator, generator.clients[0], stream, [cut])
    assert generator.meter["disorder"] > 0


def test_the_goal_is_reached_once() -> None:
    """Who has the event of the goal counts as complete."""
    generator = make_generator(exact=True)
    generator.goal = 3
    for client in generator.clients:
        feed(generator, client, events(range(1, 5)), [100])
    assert generator.meter["complete"] == 2


@pytest.mark.parametrize("size", [payload.SMALLEST, 128, 5000])
def test_an_event_has_its_size(size: int) -> None:
    """The JSON is as large as was asked for, and says when it was sent."""
    body = payload.event(12345, 7, size)
    assert len(body) == size
    assert payload.FOUND.findall(body) == [(b"%019d" % 12345, b"%010d" % 7)]


def test_what_follows_the_answer_to_a_flush_does_not_hold_it_up() -> None:
    """The server sends a PING of its own a moment after the connection was opened."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(15)
        theirs.sendall(b"INFO {}\r\nPONG\r\nPING\r\n")
        Publisher(ours, Meter()).flush()
        assert theirs.recv(100) == b"PING\r\n"
