"""A stream in the hands of others, and the bus over it: a real nats-server's, and the scripted one."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import trio

from broker.nats import headers
from tests.support import damage, unread
from tests.support.bus import Recorder, ready_bus
from tests.support.nats import NatsServer, run_nats
from tests.support.rawnats import connect
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from broker.bus.base import Bus
    from broker.bus.nats import NatsBus
    from tests.support.rawnats import Message


Answer: TypeAlias = "tuple[Mapping[str, str], bytes]"  # headers and body, also those of a request


class Stream(Protocol):
    """What happens to NATS without the broker; `sink` is what `bus` feeds."""

    sink: Recorder

    @property
    def bus(self) -> Bus: ...

    async def put(
        self, subject: str = "events.acme.a", body: bytes = b"{}", fields: Mapping[str, str] | None = None
    ) -> None:
        """Another client stores an event."""

    async def say(self, subject: str, body: bytes, fields: Mapping[str, str] | None = None) -> None:
        """Another client publishes without storing."""

    def service(self, subject: str, answer: Answer | None) -> AbstractAsyncContextManager[list[Answer]]:
        """What a service that answers so (None: never) is asked, while it is there."""

    async def leave(self) -> None:
        """NATS goes away, and stays away."""

    async def come_back(self) -> None: ...

    async def change_unseen(self, *, puts: int, delete: Sequence[int]) -> None:
        """NATS goes away for the broker alone; events are stored and others deleted before it is back."""

    async def burst_unread(self, *, delete: Sequence[int]) -> None:
        """`BURST` events are stored, and some deleted, faster than the broker reads; NATS stays in reach."""

    async def lose_end(self, count: int) -> None:
        """The store comes back without its newest events."""

    async def remake(self) -> None:
        """The stream is deleted, and made anew."""

    async def put_key(self, subject: str, body: bytes) -> int:
        """Another client stores a message in the keyed stream."""

    async def remake_keys(self) -> None:
        """The keyed stream is deleted, and made anew."""


@attrs.define(eq=False)
class Real:
    nats: NatsServer
    bus: NatsBus
    sink: Recorder

    async def put(
        self, subject: str = "events.acme.a", body: bytes = b"{}", fields: Mapping[str, str] | None = None
    ) -> None:
        async with connect(self.nats.url) as client:
            await client.store(subject, body, header=headers.block(fields))

    async def say(self, subject: str, body: bytes, fields: Mapping[str, str] | None = None) -> None:
        async with connect(self.nats.url) as client:
            await client.publish(subject, body, header=headers.block(fields))
            await client.flush()

    @asynccontextmanager
    async def service(self, subject: str, answer: Answer | None) -> AsyncIterator[list[Answer]]:
        asked: list[Answer] = []

        async def work(received: trio.MemoryReceiveChannel[Message]) -> None:
            async for message in received:
                asked.append((headers.parse(message.header), message.body))
                if answer:
                    await client.publish(message.reply, answer[1], header=headers.block(answer[0]))

        async with connect(self.nats.url) as client, trio.open_nursery() as nursery:
            nursery.start_soon(work, await client.subscribe(subject))
            await client.flush()
            yield asked
            nursery.cancel_scope.cancel()

    async def leave(self) -> None:
        await self.nats.kill9()
        await self.sink.until(lambda: not self.sink.up)

    async def come_back(self) -> None:
        await self.nats.start()

    async def change_unseen(self, *, puts: int, delete: Sequence[int]) -> None:
        port = self.nats.port
        await self.leave()
        self.nats.port = -1  # where the bus does not find it
        await self.nats.start()
        async with connect(self.nats.url) as client:
            for _ in range(puts):
                await client.store("events.acme.a")
            for sequence in delete:
                assert (await client.api("STREAM.MSG.DELETE.EVENTS", seq=sequence))["success"]
        await self.nats.kill9()
        self.nats.port = port
        await self.nats.start()

    async def burst_unread(self, *, delete: Sequence[int]) -> None:
        unread.burst(self.nats.port, delete=delete)

    async def lose_end(self, count: int) -> None:
        last = (await self.bus.state()).last
        await self.nats.term()
        damage.truncate(self.nats.directory, (last - count) / last)
        await self.nats.start()

    async def remake(self) -> None:
        async with connect(self.nats.url) as client:
            settings = (await client.api("STREAM.INFO.EVENTS"))["config"]
            await client.api("STREAM.DELETE.EVENTS")
            assert "error" not in await client.api("STREAM.CREATE.EVENTS", **settings)

    async def put_key(self, subject: str, body: bytes) -> int:
        async with connect(self.nats.url) as client:
            return await client.store(subject, body)

    async def remake_keys(self) -> None:
        async with connect(self.nats.url) as client:
            settings = (await client.api("STREAM.INFO.STATE"))["config"]
            await client.api("STREAM.DELETE.STATE")
            assert "error" not in await client.api("STREAM.CREATE.STATE", **settings)


@attrs.define(eq=False)
class Scripted:
    bus: ScriptedBus
    sink: Recorder

    async def put(
        self, subject: str = "events.acme.a", body: bytes = b"{}", fields: Mapping[str, str] | None = None
    ) -> None:
        self.bus.put(subject, body, fields)

    async def say(self, subject: str, body: bytes, fields: Mapping[str, str] | None = None) -> None:
        self.bus.put_live(subject, body, fields)

    @asynccontextmanager
    async def service(self, subject: str, answer: Answer | None) -> AsyncIterator[list[Answer]]:
        asked: list[Answer] = []

        async def work(body: bytes, fields: Mapping[str, str]) -> Answer:
            asked.append((fields, body))
            if answer is None:
                await trio.sleep_forever()
            return answer

        self.bus.services[subject] = work
        yield asked
        del self.bus.services[subject]

    async def leave(self) -> None:
        self.bus.leave()

    async def come_back(self) -> None:
        self.bus.come_back()

    async def change_unseen(self, *, puts: int, delete: Sequence[int]) -> None:
        self.bus.leave()
        for _ in range(puts):
            self.bus.put("events.acme.a", b"{}")
        self.bus.delete(delete)
        self.bus.come_back()

    async def burst_unread(self, *, delete: Sequence[int]) -> None:
        for _ in range(unread.BURST):
            self.bus.put("events.acme.a", b"{}")
        self.bus.delete(delete)

    async def lose_end(self, count: int) -> None:
        self.bus.lose_end(count)

    async def remake(self) -> None:
        self.bus.remake()

    async def put_key(self, subject: str, body: bytes) -> int:
        return self.bus.keyed("STATE").store(subject, body)

    async def remake_keys(self) -> None:
        self.bus.keyed("STATE").remake()


@asynccontextmanager
async def real(directory: Path) -> AsyncIterator[Stream]:
    async with run_nats(directory) as nats, ready_bus(nats.url) as (bus, sink):
        yield Real(nats, bus, sink)


@asynccontextmanager
async def scripted(_: Path) -> AsyncIterator[Stream]:
    bus, sink = ScriptedBus(random=random.Random(1)), Recorder()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run, sink)
        await sink.until(lambda: sink.up)
        yield Scripted(bus, sink)
        nursery.cancel_scope.cancel()
