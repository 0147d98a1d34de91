"""What `NatsBus` promises beyond the port (`tests/contract`), and what a server alone does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.bus.base import Page
from broker.bus.history import History
from broker.errors import Unavailable
from tests.support.bus import ready_bus, running_bus

if TYPE_CHECKING:
    from broker.bus.base import Bus, Record
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


def implements(bus: Bus) -> Bus:
    """For mypy: the class is the port."""
    return bus


async def read_all(bus: Bus, subject: str, *, limit: int) -> list[Record]:
    records: list[Record] = []
    pending = 1
    while pending:
        page = await bus.read(subject, after=records[-1][0] if records else 0, limit=limit)
        assert page.records or not page.pending, "empty though something is pending"
        records += page.records
        pending = page.pending
    return records


async def test_two_brokers_agree_on_the_incarnation(nats: NatsServer) -> None:
    """Positions mean the same on each broker over one NATS."""
    async with ready_bus(nats.url) as (bus, one), ready_bus(nats.url) as (_, other):
        implements(bus)
        assert one.states[0].incarnation == other.states[0].incarnation


async def test_a_fresh_broker_sees_recent_records_again(nats: NatsServer, publisher: RawNats) -> None:
    """The feed of a broker that starts reaches some seconds back, for its rings."""
    async with ready_bus(nats.url):
        for number in range(5):
            await publisher.store(f"events.acme.c{number}")
    async with ready_bus(nats.url) as (_, sink):
        await sink.until(lambda: len(sink.records) == 5)
        assert sink.heads[0] == 0


async def test_read_is_bounded_by_bytes_and_never_empty(nats: NatsServer, publisher: RawNats) -> None:
    """Large records come a few at a time, and one that is larger than a page comes alone."""
    async with ready_bus(nats.url) as (bus, _):
        for _ in range(5):
            await publisher.store("events.acme.a", bytes(500_000))
        await publisher.store("events.acme.a", bytes(1024 * 1024))
        page = await bus.read("events.acme.a", after=0, limit=100)
        assert 0 < len(page.records) < 5
        assert len(await read_all(bus, "events.acme.a", limit=100)) == 6


async def test_read_gives_the_headers_that_were_published(nats: NatsServer, publisher: RawNats) -> None:
    """What the server adds is left out, and a publisher cannot pretend another subject or sequence."""
    header = b"NATS/1.0\r\nNats-Subject: events.victim.a\r\nNats-Sequence: 1\r\nX: y\r\n\r\n"
    async with ready_bus(nats.url) as (bus, _):
        await publisher.store("events.acme.a")
        await publisher.store("events.acme.b", b"1", header=header)
        page = await bus.read("events.>", after=0, limit=10)
        assert page.records == [(1, "events.acme.a", b"{}", None), (2, "events.acme.b", b"1", {"X": "y"})]


async def test_last_is_complete_when_the_records_are_large(nats: NatsServer, publisher: RawNats) -> None:
    """The server ends a batch by its size; the rest is asked for again."""
    async with ready_bus(nats.url) as (bus, _):
        names = [f"events.acme.c{number}" for number in range(60)]
        for subject in names:
            await publisher.store(subject, bytes(1_000_000))
        assert [record[1] for record in await bus.last(names, up_to=60)] == names


async def test_run_starts_without_nats(nats: NatsServer) -> None:
    """A broker may start before its NATS: it is there as soon as that is."""
    await nats.kill9()
    async with running_bus(nats.url) as (bus, sink):
        with pytest.raises(Unavailable):
            await bus.state()
        assert sink.states == []
        await nats.start()
        await sink.until(lambda: sink.up)


async def test_streams_are_made_as_configured(nats: NatsServer, publisher: RawNats) -> None:
    """The limits of the configuration are those of the streams, and one that grew has grown there too."""
    async with ready_bus(
        nats.url, stream=config.Stream(max_age=3600.0, max_bytes=10_000_000, max_msgs_per_subject=5)
    ):
        found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        assert (found["max_age"], found["max_bytes"]) == (3600 * 10**9, 10_000_000)
        assert found["subjects"] == ["events.>"]
        assert found["storage"] == "file"
    async with ready_bus(nats.url, stream=config.Stream(max_age=7200.0, max_msgs_per_subject=9)):
        found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        assert found["max_age"] == 7200 * 10**9
        assert found["max_bytes"] == 10_000_000, "what is not configured stays as it is"
        assert found["max_msgs_per_subject"] == 9
        dead = (await publisher.api("STREAM.INFO.DEADLETTER"))["config"]
        assert dead["subjects"] == ["deadletter.>"]
        assert dead["duplicate_window"] == dead["max_age"]


async def test_values_put_together_where_batches_are_disabled(nats: NatsServer, publisher: RawNats) -> None:
    """Each by itself, with an outcome of its own; a batch is not asked for again."""
    async with ready_bus(nats.url) as (bus, _):
        values = bus.cursors
        settings = (await publisher.api("STREAM.INFO.KV_broker_cursors"))["config"]
        await publisher.api("STREAM.UPDATE.KV_broker_cursors", **settings | {"allow_atomic": False})
        first = await values.put_all([(f"u.{n}", b"a", 0) for n in range(50)])
        assert first == list(range(1, 51))
        assert not values.atomic
        puts = [(f"u.{n}", b"b", 99 if n == 7 else n + 1) for n in range(50)]
        second = await values.put_all(puts)
        assert second == [*range(51, 58), None, *range(58, 100)]


async def test_a_late_replica_hides_nothing_new(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been put is read at once, also where the replica that answers has one value alone."""
    pages = History.read

    async def late(self: History, subject: str, *, after: int, limit: int) -> Page:
        page = await pages(self, subject, after=after, limit=limit)
        return Page(records=[each for each in page.records if each[0] == 1], pending=0)

    monkeypatch.setattr(History, "read", late)
    async with ready_bus(nats.url) as (bus, _):
        for number in range(4):
            await bus.control.put(f"user.{number}", b"%d" % number, revision=0)
        found, mark = await bus.control.news("user", None)
        assert found == [b"0", b"1", b"2", b"3"]
        assert await bus.control.news("user", mark) == ([], mark)


async def test_a_bucket_made_anew_is_read_anew(nats: NatsServer) -> None:
    """A mark of a bucket that was deleted and made again does not hide what the new one has."""
    async with ready_bus(nats.url) as (bus, _):
        for number in range(3):
            await bus.control.put(f"user.{number}", b"old", revision=0)
        _, mark = await bus.control.news("user", None)
        await bus.jetstream.call(f"STREAM.DELETE.{bus.control.stream}")
        with pytest.raises(Unavailable):
            await bus.control.news("user", mark)
        await bus.keeper.ensure(bus.control.stream)
        await bus.control.put("user.x", b"new", revision=0)
        assert (await bus.control.news("user", mark))[0] == [b"new"]


async def test_the_bound_of_the_stream(nats: NatsServer) -> None:
    """The configured one, and where none is configured the one that the stream has."""
    for stream in (config.Stream(max_bytes=1 << 20), config.Stream(max_bytes=None)):
        async with ready_bus(nats.url, stream=stream) as (bus, _):
            assert (await bus.usage()).max_bytes == 1 << 20


@pytest.mark.parametrize("answer", [b"{}", b'{"seq": "1"}', b"1", b"stored"])
async def test_a_service_that_replies_stores_nothing(
    nats: NatsServer, publisher: RawNats, answer: bytes
) -> None:
    """An answer to a message is no acknowledgement unless it is a stream's."""
    subject = "unstored.a"
    asked = await publisher.subscribe(subject)
    await publisher.flush()

    async def reply() -> None:
        async for message in asked:
            await publisher.publish(message.reply.decode(), answer)

    async with ready_bus(nats.url) as (bus, _), trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        with pytest.raises(Unavailable, match=r"unstored\.a: the answer"):
            await bus.publish(subject, b"1")
        with pytest.raises(Unavailable, match=r"unstored\.a: the answer"):
            await bus.publish_all([(subject, b"1", "id")])
        nursery.cancel_scope.cancel()
