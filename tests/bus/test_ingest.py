"""The ordered feed under everything that happens to a consumer, a stream and a connection."""

from __future__ import annotations

import random
import shutil
import time
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from broker import config
from broker.bus.ingest import parsed
from broker.errors import Unavailable
from tests.support import unread
from tests.support.bus import ready_bus
from tests.support.nats import run_nats
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bus import Recorder
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.mark.parametrize(
    "reply",
    [
        b"$JS.ACK.EVENTS.broker_1.1.4711.42.1700000000000000000.3",
        b"$JS.ACK.hub.ACCHASH.EVENTS.broker_1.1.4711.42.1700000000000000000.3",
        b"$JS.ACK._.ACCHASH.EVENTS.broker_1.1.4711.42.1700000000000000000.3.random",
    ],
)
def test_sequences_of_every_form_of_acknowledgement_subject(reply: bytes) -> None:
    """9 tokens, 11 and 12: the stream's sequence, the consumer's, and when the message was stored."""
    assert parsed(reply) == (4711, 42, 1_700_000_000_000_000_000)


async def burst(publisher: RawNats, size: int, *, start: int = 0, padding: bytes = b"") -> None:
    for number in range(start, start + size):
        await publisher.publish("events.acme.a", b"%d" % number + padding)
    await publisher.flush()


async def complete(sink: Recorder, size: int) -> None:
    """Waits for `size` records, which are 1 to `size` in order, each once."""
    await sink.until(lambda: len(sink.records) >= size)
    assert sink.sequences == list(range(1, size + 1))


async def consumers(client: RawNats) -> list[str | None]:
    info = await client.api("CONSUMER.NAMES.EVENTS")
    return list(info["consumers"])


async def until_consumers(client: RawNats, wanted: list[str | None]) -> None:
    with trio.fail_after(45):
        while await consumers(client) != wanted:
            await trio.sleep(0.1)


async def test_a_burst_is_complete(nats: NatsServer, publisher: RawNats) -> None:
    """20,000 events of 1 KB as fast as they come: all, in order, with one consumer.

    So many bytes need flow control, which stops a consumer that is not answered.
    """
    padding = b" " * 1000
    async with ready_bus(nats.url) as (bus, sink):
        await burst(publisher, 20_000, padding=padding)
        await complete(sink, 20_000)
        assert sink.bodies == [b"%d" % number + padding for number in range(20_000)]
        assert bus.ingest.consumers == 1


async def test_the_feed_survives_the_server(nats: NatsServer) -> None:
    """kill -9 and restart under publishing, again and again: what was acknowledged comes once, in order."""
    acknowledged: list[int] = []
    async with ready_bus(nats.url) as (bus, sink):

        async def publish(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            while True:
                try:
                    acknowledged.append((await bus.publish("events.acme.a", b"1")).sequence)
                except Unavailable:
                    await sink.until(lambda: sink.up)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                await nursery.start(publish)
            for interruptions in range(1, 4):
                target = len(acknowledged) + random.randrange(50, 300)
                await sink.until(lambda target=target: len(sink.records) > target)  # type: ignore[misc]
                await nats.restart()
                await sink.until(lambda n=interruptions: sink.interruptions >= n and sink.up)  # type: ignore[misc]
            nursery.cancel_scope.cancel()
        await sink.until(lambda: max(acknowledged) <= sink.heads[-1])
        assert set(acknowledged) <= set(sink.sequences)
        assert sink.sequences == list(range(1, sink.heads[-1] + 1))


async def test_nothing_is_published_into_the_void(nats: NatsServer) -> None:
    """While the server is away publishing is refused; afterwards the store holds what was acknowledged."""
    async with ready_bus(nats.url) as (bus, sink):
        await nats.kill9()
        with pytest.raises(Unavailable):
            await bus.publish("events.acme.a", b"lost")
        await nats.start()
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        await bus.publish("events.acme.a", b"kept")
        await sink.until(lambda: sink.bodies == [b"kept"])


async def test_a_consumer_that_is_deleted_is_replaced(nats: NatsServer, publisher: RawNats) -> None:
    """Its silence is noticed, and the records of that time come all the same; no interruption is told."""
    async with ready_bus(nats.url) as (bus, sink):
        await burst(publisher, 10)
        await complete(sink, 10)
        await publisher.api(f"CONSUMER.DELETE.EVENTS.{bus.ingest.consumer}")
        await burst(publisher, 10, start=10)
        await complete(sink, 20)
        assert bus.ingest.consumers == 2
        assert sink.interruptions == 0
        assert await consumers(publisher) == [bus.ingest.consumer]


async def test_a_stream_that_is_deleted_is_made_again(nats: NatsServer, publisher: RawNats) -> None:
    """Its records are of another incarnation, and the feed starts over at the first of them."""
    async with ready_bus(nats.url) as (_, sink):
        await burst(publisher, 5)
        await complete(sink, 5)
        await publisher.api("STREAM.DELETE.EVENTS")
        await sink.until(lambda: len(sink.states) == 2)
        assert sink.states[0].incarnation != sink.states[1].incarnation
        await burst(publisher, 3)
        await complete(sink, 3)
        assert sink.heads[0] == 0


async def test_a_stream_that_somebody_else_made_again_is_noticed(
    nats: NatsServer, publisher: RawNats
) -> None:
    """Also when it holds more than the old one did: a consumer behind the old head would skip in silence."""
    async with ready_bus(nats.url) as (_, sink):
        await burst(publisher, 5)
        await complete(sink, 5)
        found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        await publisher.api("STREAM.DELETE.EVENTS")
        await publisher.api("STREAM.CREATE.EVENTS", **found)
        await burst(publisher, 20, start=100)
        await sink.until(lambda: len(sink.states) == 2)
        await complete(sink, 20)
        assert sink.bodies[0] == b"100"


async def test_a_stream_that_lost_its_end_is_a_new_incarnation(nats: NatsServer, publisher: RawNats) -> None:
    """The same sequences would stand for other events. All brokers agree, also one that comes later."""
    async with ready_bus(nats.url) as (one, seen), ready_bus(nats.url) as (_, other):
        await burst(publisher, 5)
        await complete(seen, 5)
        await complete(other, 5)
        await nats.term()
        copy(nats, "store", "copy")
        await nats.start()
        await seen.until(lambda: seen.up)
        async with connect(nats.url) as client:
            await burst(client, 5, start=5)
        await complete(seen, 10)
        await complete(other, 10)
        await nats.term()
        copy(nats, "copy", "store")
        await nats.start()
        await seen.until(lambda: len({state.incarnation for state in seen.states}) == 2)
        await other.until(lambda: len({state.incarnation for state in other.states}) == 2)
        assert seen.states[-1].incarnation == other.states[-1].incarnation
        await one.publish("events.acme.a", b"other")
        await complete(seen, 6)
        await complete(other, 6)
        async with ready_bus(nats.url) as (_, late):
            assert late.states[0].incarnation == seen.states[-1].incarnation


async def test_a_generation_that_another_broker_began_is_taken_up(
    nats: NatsServer, publisher: RawNats
) -> None:
    """A broker that did not see the end of the stream go finds out when it asks for the state."""
    async with ready_bus(nats.url) as (bus, sink):
        await burst(publisher, 3)
        await complete(sink, 3)
        settings = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        settings["metadata"]["broker_generation"] = "1"
        await publisher.api("STREAM.UPDATE.EVENTS", **settings)
        state = await bus.state()
        assert state.incarnation == sink.states[0].incarnation + "1"
        await sink.until(lambda: sink.states[-1] == state)
        await complete(sink, 3)


def copy(nats: NatsServer, source: str, target: str) -> None:
    """Replaces one store by another; the server is down."""
    shutil.rmtree(nats.directory / target, ignore_errors=True)
    shutil.copytree(nats.directory / source, nats.directory / target)


async def test_a_purge_moves_nothing(nats: NatsServer, publisher: RawNats) -> None:
    """Sequences go on behind a purge, and so does the feed, in the same incarnation."""
    async with ready_bus(nats.url) as (_, sink):
        await burst(publisher, 5)
        await complete(sink, 5)
        await publisher.api("STREAM.PURGE.EVENTS")
        await burst(publisher, 5, start=5)
        await complete(sink, 10)
        assert sink.interruptions == 0


async def test_what_was_trimmed_while_we_were_away_is_visible(nats: NatsServer, publisher: RawNats) -> None:
    """`restored` says that the stream begins behind our head, before the records that are left."""
    async with ready_bus(nats.url) as (_, sink):
        await burst(publisher, 5)
        await complete(sink, 5)
        port = nats.port
        await nats.kill9()
        nats.port = -1  # where the bus does not find it
        await nats.start()
        async with connect(nats.url) as client:
            await burst(client, 5, start=5)
            await client.api("STREAM.PURGE.EVENTS", seq=9)
        await nats.kill9()
        nats.port = port
        await nats.start()
        await sink.until(lambda: sink.sequences == [1, 2, 3, 4, 5, 9, 10])
        assert sink.states[1] == attrs.evolve(sink.states[0], first=9, last=10)


async def test_what_is_trimmed_before_we_read_it_is_visible(nats: NatsServer, publisher: RawNats) -> None:
    """Also in the middle of the feed: `restored` comes again, and says where the stream begins now."""
    async with ready_bus(nats.url, stream=config.Stream(max_bytes=1_000_000)) as (_, sink):
        await publisher.store("events.acme.a")
        await sink.until(lambda: len(sink.records) == 1)
        unread.burst(nats.port)
        await sink.until(lambda: sink.sequences[-1] == 20_001)
        firsts = [state.first for state in sink.states[1:]]
        missing = sorted(set(range(1, 20_002)) - set(sink.sequences))
        assert missing
        assert firsts[-1] > missing[-1]


async def test_rollups_are_no_holes(nats: NatsServer, publisher: RawNats) -> None:
    """Records that were replaced before the feed came to them are no loss and no reason to begin again."""
    rollup = b"NATS/1.0\r\nNats-Rollup: sub\r\n\r\n"
    async with ready_bus(nats.url) as (bus, sink):
        await publisher.store("events.acme.first")
        for _ in range(300):
            await publisher.publish("events._broker.canary", b"{}", header=rollup)
        last = await publisher.store("events.acme.last")
        await sink.until(lambda: sink.sequences[-1] == last)
        assert sink.interruptions == 0
        assert bus.ingest.consumers == 1


async def test_tiny_bounds_make_no_hole(nats: NatsServer, publisher: RawNats) -> None:
    """What does not fit into the queue is read again by another consumer: late, but all of it."""
    async with ready_bus(nats.url, held_records=10) as (bus, sink):
        await burst(publisher, 500)
        await complete(sink, 500)
        assert bus.ingest.consumers > 1


@pytest.mark.parametrize("dropped", [5, 9])
async def test_a_record_that_does_not_arrive_is_read_again(
    nats: NatsServer, publisher: RawNats, dropped: int
) -> None:
    """The next record's number shows the hole, or, behind the last one, that in the heartbeat."""
    async with ready_bus(nats.url) as (bus, sink):
        link, number = await bus.jetstream.up(), bus.ingest.subscription
        assert number is not None
        arrived = link.handlers[number]

        def lossy(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
            if body != b"%d" % dropped:
                arrived(subject, reply, block, body)

        link.handlers[number] = lossy
        await burst(publisher, 10)
        await complete(sink, 10)
        assert bus.ingest.consumers == 2
        assert sink.interruptions == 0


async def test_the_loop_may_be_blocked(nats: NatsServer, publisher: RawNats) -> None:
    """A program that stops for longer than the heartbeats' patience gets all that came meanwhile."""
    async with ready_bus(nats.url) as (_, sink):
        await burst(publisher, 5000)
        time.sleep(3)  # noqa: ASYNC251  blocking is the point
        await complete(sink, 5000)


@pytest.mark.parametrize("tail", [b"\xff", b"\x0b", b"\x0c", b"\xc2\xa0", "ü".encode(), b"\x00"])
async def test_no_subject_stops_the_feed(nats: NatsServer, publisher: RawNats, tail: bytes) -> None:
    """Bytes that NATS stores and nats-py would fall over come as they are, by the feed and from the past."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.subscribe_live("live.acme.>")
        await publisher.store(b"events.acme.x" + tail)
        await publisher.publish(b"live.acme.x" + tail)
        await publisher.store(b"events.acme.y")
        await sink.until(lambda: len(sink.records) == 2 and len(sink.messages) == 1)
        page = await bus.read("events.>", after=0, limit=2)
        for subject in (sink.records[0][1], page.records[0][1]):
            assert subject.encode("utf-8", "surrogateescape") == b"events.acme.x" + tail
        assert sink.messages[0][1].encode("utf-8", "surrogateescape") == b"live.acme.x" + tail
        assert sink.interruptions == 0


@pytest.mark.parametrize(
    "header",
    [
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 9\r\n\r\n",
        b"NATS/1.0 409 \xff\r\n\r\n",
        b"NATS/1.0\r\n\xff: \xff\r\nnothing\r\n\r\n",
        b"NATS/1.0\r\n\r\n",
        b"N",
    ],
)
async def test_no_header_stops_the_feed(nats: NatsServer, publisher: RawNats, header: bytes) -> None:
    """A publisher cannot play the server, nor break the feed or a read, with a header block of its own."""
    async with ready_bus(nats.url) as (bus, sink):
        await publisher.store("events.acme.x", b"", header=header)
        await publisher.store("events.acme.y", b"1")
        await sink.until(lambda: len(sink.records) == 2)
        page = await bus.read("events.>", after=0, limit=2)
        assert [record[1:3] for record in page.records] == [("events.acme.x", b""), ("events.acme.y", b"1")]
        assert bus.ingest.consumers == 1


async def test_a_heartbeat_that_no_server_sends(nats: NatsServer, publisher: RawNats) -> None:
    """Whoever may publish to our inbox costs us a consumer, not the broker."""
    async with ready_bus(nats.url) as (bus, sink):
        wrong = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: x\r\n\r\n"
        await publisher.publish(bus.ingest.inbox, header=wrong)
        await publisher.flush()
        await publisher.store("events.acme.a", b"1")
        await sink.until(lambda: sink.bodies == [b"1"])
        assert bus.ingest.consumers == 2


async def test_our_consumer_does_not_outlive_us(nats: NatsServer, publisher: RawNats) -> None:
    """A broker that is gone leaves nothing in NATS: its consumer is forgotten within seconds."""
    async with ready_bus(nats.url) as (bus, _):
        assert await consumers(publisher) == [bus.ingest.consumer]
    await until_consumers(publisher, [])


async def test_a_server_that_hangs_is_noticed(nats: NatsServer) -> None:
    """SIGSTOP: no heartbeat, no answer, so it is out of reach. After SIGCONT there is one consumer again."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.publish("events.acme.a", b"1")
        nats.stop()
        await sink.until(lambda: not sink.up)
        nats.cont()
        await sink.until(lambda: sink.up)
        await bus.publish("events.acme.a", b"2")
        await sink.until(lambda: sink.bodies == [b"1", b"2"])
        async with connect(nats.url) as client:
            await until_consumers(client, [bus.ingest.consumer])


async def test_a_jetstream_domain(tmp_path: Path) -> None:
    """Records come with the longer acknowledgement subjects, and the API is asked under the domain."""
    store = {"store_dir": str(tmp_path / "store"), "domain": "hub"}
    async with run_nats(tmp_path, jetstream=store) as nats:
        section = config.Nats(jetstream_domain="hub")
        async with ready_bus(nats.url, nats=section) as (bus, sink):
            await bus.publish("events.acme.a", b"1")
            await sink.until(lambda: sink.bodies == [b"1"])
            assert (await bus.read("events.>", after=0, limit=1)).records
            assert bus.jetstream.prefix == "$JS.hub.API"
