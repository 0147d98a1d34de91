"""What the port says of deletions and of a lost end: over a real nats-server, and the scripted bus alike."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import attrs
import pytest
import trio

from broker.ranges import Ranges
from tests.support import damage
from tests.support.bus import Recorder, ready_bus
from tests.support.nats import NatsServer, run_nats
from tests.support.rawnats import connect
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    from broker.bus.base import Bus

    Open: TypeAlias = "Callable[[Path], AbstractAsyncContextManager[Stream]]"


class Stream(Protocol):
    """A stream in the hands of somebody else, and the bus over it."""

    sink: Recorder

    @property
    def bus(self) -> Bus: ...

    async def put(self, count: int) -> None: ...

    async def delete(self, *sequences: int) -> None: ...

    async def lose_end(self, count: int) -> None: ...


@attrs.define(eq=False)
class Real:
    nats: NatsServer
    bus: Bus
    sink: Recorder

    async def put(self, count: int) -> None:
        async with connect(self.nats.url) as client:
            for _ in range(count):
                await client.store("events.acme.a")

    async def delete(self, *sequences: int) -> None:
        async with connect(self.nats.url) as client:
            for sequence in sequences:
                await client.api("STREAM.MSG.DELETE.EVENTS", seq=sequence)

    async def lose_end(self, count: int) -> None:
        last = (await self.bus.state()).last
        await self.nats.term()
        damage.truncate(self.nats.directory, (last - count) / last)
        await self.nats.start()


@attrs.define(eq=False)
class Scripted:
    bus: ScriptedBus
    sink: Recorder

    async def put(self, count: int) -> None:
        for _ in range(count):
            self.bus.put("events.acme.a", b"{}")

    async def delete(self, *sequences: int) -> None:
        self.bus.delete(sequences)

    async def lose_end(self, count: int) -> None:
        self.bus.lose_end(count)


@asynccontextmanager
async def real(directory: Path) -> AsyncIterator[Stream]:
    async with run_nats(directory) as nats, ready_bus(nats.url) as (bus, sink):
        yield Real(nats, bus, sink)


@asynccontextmanager
async def scripted(_: Path) -> AsyncIterator[Stream]:
    bus, sink = ScriptedBus(random=random.Random(1)), Recorder()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run, sink)
        yield Scripted(bus, sink)
        nursery.cancel_scope.cancel()


both = pytest.mark.parametrize("open_stream", [real, scripted])


@both
async def test_what_was_deleted_is_named(tmp_path: Path, open_stream: Open) -> None:
    """By its sequence within the stream, by `first` at its beginning; in the same incarnation."""
    async with open_stream(tmp_path) as stream:
        await stream.put(10)
        before = await stream.bus.state()
        assert (before.deleted, before.unnamed, before.per_subject) == (Ranges(), 0, 0)
        await stream.delete(4, 5, 8)
        state = await stream.bus.state()
        assert state.deleted == Ranges.of([4, 5, 8])
        await stream.delete(1, 2, 3, 10)
        state = await stream.bus.state()
        assert (state.first, state.last, state.incarnation) == (6, 10, before.incarnation)
        assert state.deleted == Ranges.of([8, 10])
        page = await stream.bus.read("events.>", after=0, limit=20)
        assert [record[0] for record in page.records] == [6, 7, 9][: len(page.records)]


@both
async def test_what_was_lost_begins_a_new_incarnation(tmp_path: Path, open_stream: Open) -> None:
    """The sink is told, with what is left, and the feed starts over there; the sequences are used again."""
    async with open_stream(tmp_path) as stream:
        await stream.put(10)
        await stream.sink.until(lambda: stream.sink.heads[-1:] == [10])
        await stream.lose_end(4)
        sink = stream.sink
        await sink.until(lambda: sink.up and sink.states[-1].incarnation != sink.states[0].incarnation)
        assert (sink.states[-1].first, sink.states[-1].last) == (1, 6)
        await stream.put(1)
        await sink.until(lambda: sink.sequences == [1, 2, 3, 4, 5, 6, 7])
        assert (await stream.bus.state()).incarnation == sink.states[-1].incarnation
