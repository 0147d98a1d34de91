"""A stream as people look at it, over a real nats-server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tests.support.bus import ready_bus

if TYPE_CHECKING:
    from broker.bus.base import Archive, Entry
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


def sequences(entries: list[Entry]) -> list[int]:
    return [entry.sequence for entry in entries]


async def test_entries(nats: NatsServer, publisher: RawNats) -> None:
    """An entry has what was stored, and when; the same in a list and by itself."""
    async with ready_bus(nats.url) as (bus, _):
        archive: Archive = bus.archive("EVENTS")
        began = datetime.now(UTC) - timedelta(seconds=1)
        await publisher.store("events.acme.a", b"\xff1", header=b"NATS/1.0\r\nBroker-Reason: x: y\r\n\r\n")
        [entry] = await archive.after("events.acme.>", 0, limit=10)
        assert (entry.sequence, entry.subject, entry.body) == (1, "events.acme.a", b"\xff1")
        assert entry.headers == {"Broker-Reason": "x: y"}
        assert began < entry.time < datetime.now(UTC) + timedelta(seconds=1)
        assert await archive.get(1) == entry
        assert await archive.before(">", None, limit=10) == [entry]
        assert await archive.get(2) is None
        assert await archive.sequence_at(began) == 1


async def test_newest_first(nats: NatsServer, publisher: RawNats) -> None:
    """Pages backwards meet every match once, however thinly they lie, and whatever was taken out."""
    async with ready_bus(nats.url) as (bus, _):
        archive = bus.archive("EVENTS")
        assert await archive.before(">", None, limit=5) == []
        for number in range(1, 401):
            channel = "many" if number % 57 else "rare"
            await publisher.store(f"events.acme.{channel}", b"%d" % number)
        rare = [number for number in range(400, 0, -1) if number % 57 == 0]
        assert sequences(await archive.before("events.acme.rare", None, limit=3)) == rare[:3]
        assert sequences(await archive.before("events.acme.rare", rare[2], limit=3)) == rare[3:6]
        assert sequences(await archive.before("events.acme.rare", rare[5], limit=3)) == rare[6:]
        assert sequences(await archive.before("events.acme.rare", 1, limit=3)) == []
        assert sequences(await archive.before(">", None, limit=300)) == list(range(400, 100, -1))
        assert sequences(await archive.after(">", 90, limit=300)) == list(range(91, 391))
        for sequence in (400, 399, 250):
            assert await archive.delete(sequence)
        assert not await archive.delete(250)
        assert sequences(await archive.before(">", None, limit=2)) == [398, 397]
        assert sequences(await archive.before(">", 252, limit=2)) == [251, 249]


async def test_purge(nats: NatsServer, publisher: RawNats) -> None:
    """A purge takes what its filter matches and nothing else."""
    async with ready_bus(nats.url) as (bus, _):
        archive = bus.archive("EVENTS")
        for tenant in ("a", "b", "a"):
            await publisher.store(f"events.{tenant}.x", b"1")
        assert await archive.purge("events.a.>") == 2
        assert await archive.purge("events.a.>") == 0
        assert sequences(await archive.before(">", None, limit=9)) == [2]
