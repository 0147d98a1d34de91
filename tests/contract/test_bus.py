"""What `bus.base.Bus` and `Sink` promise, over a real nats-server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.bus.base import Page, Stale
from broker.bus.history import History
from broker.errors import TooLarge, Unavailable
from tests.support.bus import Recorder, ready_bus, running_bus
from tests.support.scripted_bus import ScriptedValues

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


async def test_the_feed_begins_with_the_state_and_the_head(nats: NatsServer) -> None:
    """The sink learns what the stream holds, then where the feed begins, before any record."""
    async with ready_bus(nats.url) as (bus, sink):
        implements(bus)
        await sink.until(lambda: bool(sink.heads))
        assert (sink.states[0].first, sink.states[0].last) == (1, 0)
        assert sink.heads == [0]
        assert sink.states[0].incarnation.isalnum()
        assert sink.states[0].incarnation.islower()


async def test_records_come_as_they_were_published(nats: NatsServer, publisher: RawNats) -> None:
    """Sequence, subject, body and headers of a record are what any NATS client sent, byte for byte."""
    async with ready_bus(nats.url) as (_, sink):
        await publisher.store("events.acme.orders.7", b'{ "a" : 1 }\n')
        await publisher.store("events.acme.b", b"", header=b"NATS/1.0\r\nce-id: 7\r\nce-type:  a b \r\n\r\n")
        await sink.until(lambda: len(sink.records) == 2)
        assert sink.records == [
            (1, "events.acme.orders.7", b'{ "a" : 1 }\n', None),
            (2, "events.acme.b", b"", {"ce-id": "7", "ce-type": "a b"}),
        ]


async def test_two_brokers_agree_on_the_incarnation(nats: NatsServer) -> None:
    """Positions mean the same on each broker over one NATS."""
    async with ready_bus(nats.url) as (_, one), ready_bus(nats.url) as (_, other):
        assert one.states[0].incarnation == other.states[0].incarnation


async def test_a_fresh_broker_sees_recent_records_again(nats: NatsServer, publisher: RawNats) -> None:
    """The feed of a broker that starts reaches some seconds back, for its rings."""
    async with ready_bus(nats.url):
        for number in range(5):
            await publisher.store(f"events.acme.c{number}")
    async with ready_bus(nats.url) as (_, sink):
        await sink.until(lambda: len(sink.records) == 5)
        assert sink.heads[0] == 0


async def test_publish_is_acknowledged_with_its_sequence(nats: NatsServer) -> None:
    """The acknowledgement names the record that `read` finds."""
    async with ready_bus(nats.url) as (bus, _):
        ack = await bus.publish("events.acme.a", b"1", headers={"Broker-User": "zoë"})
        assert not ack.duplicate
        page = await bus.read("events.acme.a", after=0, limit=10)
        (sequence, subject, body, headers) = page.records[0]
        assert (sequence, subject, body) == (ack.sequence, "events.acme.a", b"1")
        assert headers is not None
        assert headers["Broker-User"] == "zoë"


async def test_a_message_id_makes_a_retry_harmless(nats: NatsServer) -> None:
    """The second copy under one id is a duplicate with the first one's sequence; without an id none is."""
    async with ready_bus(nats.url) as (bus, _):
        first = await bus.publish("events.acme.a", b"1", message_id="acme:1")
        second = await bus.publish("events.acme.a", b"1", message_id="acme:1")
        assert (second.sequence, second.duplicate) == (first.sequence, True)
        assert (await bus.publish("events.acme.a", b"1")).sequence == first.sequence + 1
        assert (await bus.publish("events.acme.a", b"1")).sequence == first.sequence + 2


@pytest.mark.parametrize("fields", [{"A": "b\r\nNats-Rollup: sub"}, {"A": "b\nc"}, {"A\r": "b"}])
async def test_a_header_cannot_become_two(nats: NatsServer, fields: dict[str, str]) -> None:
    """Line breaks in headers are an error of the caller, for stored and live messages."""
    async with ready_bus(nats.url) as (bus, _):
        with pytest.raises(ValueError, match="line break"):
            await bus.publish("events.acme.a", b"1", headers=fields)
        with pytest.raises(ValueError, match="line break"):
            await bus.publish_live("live.acme.a", b"1", headers=fields)


async def test_a_subject_cannot_become_a_command(nats: NatsServer) -> None:
    """A blank or a line break in a subject is an error of the caller."""
    async with ready_bus(nats.url) as (bus, _):
        for subject in ("events.acme.a b", "events.acme.a\r\nPUB x 0"):
            with pytest.raises(ValueError, match="subject"):
                await bus.publish(subject, b"")


async def test_a_message_above_the_servers_limit_is_too_large(nats: NatsServer) -> None:
    """What the server would cut the connection for is refused before it is sent."""
    async with ready_bus(nats.url) as (bus, sink):
        with pytest.raises(TooLarge):
            await bus.publish("events.acme.a", bytes(1024 * 1024 + 1))
        assert (await bus.publish("events.acme.a", bytes(1024 * 1000))).sequence == 1
        assert sink.interruptions == 0


async def test_many_are_stored_at_once(nats: NatsServer) -> None:
    """A batch is stored whole and in order; sent again under the same ids it is there once."""
    async with ready_bus(nats.url) as (bus, sink):
        batch = [(f"events.acme.c{number}", b"%d" % number, f"acme:{number}") for number in range(300)]
        await bus.publish_all(batch)
        await bus.publish_all(batch[200:])
        await bus.publish("events.acme.end", b"end")
        await sink.until(lambda: sink.bodies[-1:] == [b"end"])
        assert sink.bodies[:-1] == [body for _, body, _ in batch]


async def test_of_many_none_may_fail(nats: NatsServer) -> None:
    """One message that no stream takes makes the whole batch unavailable, and takes nobody else's answer."""
    async with ready_bus(nats.url) as (bus, sink):
        with pytest.raises(Unavailable):
            await bus.publish_all([("events.acme.a", b"1", "1"), ("nowhere.acme.a", b"2", "2")])
        await bus.publish_all([("events.acme.a", b"1", "1"), ("events.acme.a", b"3", "3")])
        await sink.until(lambda: sink.bodies == [b"1", b"3"])


async def test_a_publish_that_no_stream_takes_is_unavailable(nats: NatsServer) -> None:
    """Nobody acknowledges: that is no success."""
    async with ready_bus(nats.url) as (bus, _):
        with pytest.raises(Unavailable):
            await bus.publish("nowhere.acme.a", b"1")


async def test_live_messages_reach_whoever_subscribed(nats: NatsServer, publisher: RawNats) -> None:
    """Once `subscribe_live` returned nothing is missed, and after `unsubscribe_live` nothing comes."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.subscribe_live("live.acme.>")
        await publisher.publish("live.acme.cursor.7", b"a", header=b"NATS/1.0\r\nX: y\r\n\r\n")
        await publisher.publish("live.other.cursor.7", b"not ours")
        await bus.publish_live("live.acme.b", b"b")
        await sink.until(lambda: len(sink.messages) == 2)
        assert (0, "live.acme.cursor.7", b"a", {"X": "y"}) in sink.messages
        assert (0, "live.acme.b", b"b", None) in sink.messages
        await bus.unsubscribe_live("live.acme.>")
        await bus.publish_live("live.acme.b", b"c")
        await bus.subscribe_live("live.acme.last")
        await bus.publish_live("live.acme.last", b"d")
        await sink.until(lambda: sink.messages[-1][2] == b"d")
        assert [body for _, _, body, _ in sink.messages if body == b"c"] == []


async def test_live_subscriptions_at_the_same_time_are_one(nats: NatsServer) -> None:
    """Tasks that subscribe one subject together do not make its messages come twice."""
    async with ready_bus(nats.url) as (bus, sink):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(bus.subscribe_live, "live.acme.a")
        await bus.publish_live("live.acme.a", b"1")
        await bus.publish_live("live.acme.a", b"2")
        await sink.until(lambda: sink.messages[-1:] == [(0, "live.acme.a", b"2", None)])
        assert len(sink.messages) == 2


async def test_state(nats: NatsServer, publisher: RawNats) -> None:
    """First and last follow what is stored and purged; an empty stream begins after its end."""
    async with ready_bus(nats.url) as (bus, _):
        for _ in range(3):
            await publisher.store("events.acme.a")
        state = await bus.state()
        assert (state.first, state.last) == (1, 3)
        await publisher.api("STREAM.PURGE.EVENTS")
        state = await bus.state()
        assert (state.first, state.last) == (4, 3)


async def test_state_is_never_older_than_the_question(nats: NatsServer) -> None:
    """Whoever asks after an acknowledgement sees that record, also while others are asking."""
    async with ready_bus(nats.url) as (bus, _):

        async def publish_and_ask() -> None:
            ack = await bus.publish("events.acme.a", b"1")
            assert (await bus.state()).last >= ack.sequence

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(publish_and_ask)


async def test_read_pages_through_what_matches(nats: NatsServer, publisher: RawNats) -> None:
    """Pages of any size add up to all records of a filter, in order; `pending` counts what is left."""
    async with ready_bus(nats.url) as (bus, _):
        for number in range(50):
            await publisher.store(f"events.acme.c{number % 3}.x", b"%d" % number)
        for limit in (1, 7, 1000):
            records = await read_all(bus, "events.acme.c1.>", limit=limit)
            assert [body for _, _, body, _ in records] == [b"%d" % n for n in range(1, 50, 3)]
        page = await bus.read("events.acme.*.x", after=10, limit=5)
        assert [record[0] for record in page.records] == [11, 12, 13, 14, 15]
        assert page.pending == 35
        assert await bus.read("events.acme.>", after=50, limit=5) == type(page)(records=[], pending=0)
        assert await bus.read("events.nobody.>", after=0, limit=5) == type(page)(records=[], pending=0)


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


async def test_last_is_the_newest_of_each_up_to_a_sequence(nats: NatsServer, publisher: RawNats) -> None:
    """Over more subjects than the server takes at once, in sequence order, unknown ones left out."""
    async with ready_bus(nats.url) as (bus, _):
        names = [f"events.acme.c{number}" for number in range(1100)]
        for subject in names:
            await publisher.publish(subject, b"old")
        await publisher.flush()
        await publisher.store(names[0], b"new")
        await publisher.store(names[1], b"newer")
        records = await bus.last([*reversed(names), "events.acme.unknown"], up_to=1101)
        assert [record[0] for record in records] == list(range(2, 1102))
        assert records[-1][1:3] == (names[0], b"new")
        assert await bus.last(["events.acme.unknown"], up_to=1102) == []
        assert await bus.last(names, up_to=0) == []
        assert await bus.last([], up_to=10) == []


async def test_last_is_complete_when_the_records_are_large(nats: NatsServer, publisher: RawNats) -> None:
    """The server ends a batch by its size; the rest is asked for again."""
    async with ready_bus(nats.url) as (bus, _):
        names = [f"events.acme.c{number}" for number in range(60)]
        for subject in names:
            await publisher.store(subject, bytes(1_000_000))
        assert [record[1] for record in await bus.last(names, up_to=60)] == names


async def test_subjects(nats: NatsServer, publisher: RawNats) -> None:
    """All names under a filter, or None when there are more than the caller takes."""
    async with ready_bus(nats.url) as (bus, _):
        for number in range(20):
            await publisher.store(f"events.acme.c{number}")
        await publisher.store("events.other.c")
        found = await bus.subjects("events.acme.>", limit=20)
        assert found is not None
        assert sorted(found) == sorted(f"events.acme.c{number}" for number in range(20))
        assert await bus.subjects("events.acme.>", limit=19) is None
        assert await bus.subjects("events.nobody.>", limit=10) == []


async def test_sequence_at(nats: NatsServer, publisher: RawNats) -> None:
    """The first record at or after a time, in any time zone; none when all are older."""
    async with ready_bus(nats.url) as (bus, _):
        now = partial(datetime.now, UTC)
        assert await bus.sequence_at(now() - timedelta(days=1)) is None
        await publisher.store("events.acme.a")
        between = now()
        await publisher.store("events.acme.a")
        assert await bus.sequence_at(between - timedelta(days=1)) == 1
        assert await bus.sequence_at(between) == 2
        assert await bus.sequence_at(between.astimezone()) == 2
        assert await bus.sequence_at(now()) is None


async def test_everything_is_unavailable_while_nats_is_away(nats: NatsServer) -> None:
    """Each request is refused at once, with a time to try again; none is swallowed or hangs."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.subscribe_live("live.acme.a")
        await nats.kill9()
        await sink.until(lambda: not sink.up)
        requests: list[Callable[[], Awaitable[object]]] = [
            partial(bus.publish, "events.acme.a", b"1"),
            partial(bus.publish_live, "live.acme.a", b"1"),
            partial(bus.subscribe_live, "live.acme.b"),
            bus.state,
            partial(bus.read, "events.>", after=0, limit=1),
            partial(bus.last, ["events.acme.a"], up_to=1),
            partial(bus.subjects, "events.>", limit=1),
            partial(bus.sequence_at, datetime.now(UTC)),
        ]
        for request in requests:
            with pytest.raises(Unavailable) as caught, trio.fail_after(1):
                await request()
            assert caught.value.retry_after
        await bus.unsubscribe_live("live.acme.a")
        await nats.start()
        await sink.until(lambda: sink.up)
        assert (await bus.publish("events.acme.a", b"1")).sequence == 1


async def test_run_starts_without_nats(nats: NatsServer) -> None:
    """A broker may start before its NATS: it is there as soon as that is."""
    await nats.kill9()
    async with running_bus(nats.url) as (bus, sink):
        with pytest.raises(Unavailable):
            await bus.state()
        assert sink.states == []
        await nats.start()
        await sink.until(lambda: sink.up)


async def test_requests_may_be_cancelled(nats: NatsServer) -> None:
    """A caller that goes away in the middle of a request leaves a bus that works."""
    async with ready_bus(nats.url) as (bus, sink):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for request in (
                    partial(bus.publish, "events.acme.a", b"1"),
                    partial(bus.publish_live, "live.acme.a", b"1"),
                    partial(bus.subscribe_live, "live.acme.a"),
                    bus.state,
                    partial(bus.read, "events.>", after=0, limit=100),
                ):
                    nursery.start_soon(request)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        ack = await bus.publish("events.acme.last", b"1")
        await sink.until(lambda: ack.sequence in sink.sequences)
        assert sink.interruptions == 0


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


def test_the_recorder_notices_what_it_is_for() -> None:
    """The sink of these tests fails on records out of order and on a second interruption."""
    sink = Recorder()
    with pytest.raises(AssertionError):
        sink.interrupted()
    with pytest.raises(AssertionError):
        sink.stored([], 1, None)


async def test_values_and_what_is_new_in_a_bucket(nats: NatsServer) -> None:
    """`news` brings what was put since the mark, once and in order; a put needs the revision it replaces."""
    async with ready_bus(nats.url) as (bus, _):
        values = bus.control
        found, mark = await values.news("user", None)
        assert found == []
        first = await values.put("user.a", b"1", revision=0)
        await values.put("user.b", b"2", revision=0, ttl=3600)
        with pytest.raises(Stale):
            await values.put("user.a", b"3", revision=0)
        found, mark = await values.news("user", mark)
        assert found == [b"1", b"2"]
        assert (await values.news("user", mark)) == ([], mark)
        await values.put("user.a", b"4", revision=first)
        assert (await values.news("user", mark))[0] == [b"4"]
        assert (await values.news("user", None))[0] == [b"2", b"4"]
        value = await values.get("user.a")
        assert value
        assert value.data == b"4"
        assert await values.get("user.c") is None
        assert await values.count("user") == 2


@pytest.mark.parametrize("kind", ["scripted", "batches", "no batches"])
async def test_values_put_together(nats: NatsServer, publisher: RawNats, kind: str) -> None:
    """Each is as if it had been put alone, whichever of them are stale, and with batches or without."""
    async with ready_bus(nats.url) as (bus, _):
        values = ScriptedValues(trio.lowlevel.checkpoint) if kind == "scripted" else bus.cursors
        if kind == "no batches":
            settings = (await publisher.api("STREAM.INFO.KV_broker_cursors"))["config"]
            await publisher.api("STREAM.UPDATE.KV_broker_cursors", **settings | {"allow_atomic": False})
        first = await values.put_all([(f"u.{n}", b"a", 0) for n in range(50)])
        assert len({*first}) == 50
        for round_ in range(3):
            wrong = {7, 30} if round_ else set()
            puts = [
                (f"u.{n}", b"%d" % round_, 999_999 if n in wrong else revision or 0)
                for n, revision in enumerate(first)
            ]
            revisions = await values.put_all(puts)
            assert {n for n, revision in enumerate(revisions) if revision is None} == wrong
            for n, revision in enumerate(revisions):
                held = await values.get(f"u.{n}")
                assert held
                assert held.data == (b"0" if n in wrong else b"%d" % round_)
                assert held.revision == (revision or first[n])
            first = [revision or first[n] for n, revision in enumerate(revisions)]
        assert await values.put_all([("u.0", b"x", first[0] or 0)]) == [max(each or 0 for each in first) + 1]


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


async def test_a_value_goes_at_its_time(nats: NatsServer) -> None:
    """A value with a time to live is gone after it, and the next one begins anew."""
    async with ready_bus(nats.url) as (bus, _):
        await bus.control.put("user.a", b"1", revision=0, ttl=1)
        with trio.fail_after(20):
            while await bus.control.get("user.a"):
                await trio.sleep(0.05)
        await bus.control.put("user.a", b"2", revision=0)
        assert (await bus.control.news("user", None))[0] == [b"2"]


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


async def test_how_much_the_stream_holds_and_of_whom(nats: NatsServer, publisher: RawNats) -> None:
    """Messages, bytes, sequences and the bound; counts by a token over all subjects under a filter."""
    stream = config.Stream(max_bytes=1 << 20)
    async with ready_bus(nats.url, stream=stream) as (bus, sink):
        empty = await bus.usage()
        assert (empty.messages, empty.bytes, empty.max_bytes) == (0, 0, 1 << 20)
        assert await bus.tally("events.>", token=1) == {}
        for number in range(12):
            tenant = ("acme", "acme", "globex")[number % 3]
            await publisher.store(f"events.{tenant}.c{number}", b"1234567890")
        await sink.until(lambda: len(sink.records) == 12)
        usage = await bus.usage()
        assert (usage.messages, usage.first, usage.last) == (12, 1, 12)
        assert usage.bytes > 12 * 10
        assert await bus.tally("events.>", token=1) == {"acme": 8, "globex": 4}
        assert await bus.tally("events.acme.*", token=0) == {"events": 8}
    async with ready_bus(nats.url, stream=config.Stream(name="EVENTS", max_bytes=None)) as (bus, _):
        assert (await bus.usage()).max_bytes == 1 << 20  # what is not said stays as it is


async def test_records_say_when_the_first_was_stored(nats: NatsServer, publisher: RawNats) -> None:
    """By the clock of NATS, which is this machine's here; the recorder checks that it is said with each."""
    before = datetime.now(UTC).timestamp()
    async with ready_bus(nats.url) as (_, sink):
        await publisher.store("events.acme.a", b"1")
        await sink.until(lambda: len(sink.records) == 1)
    after = datetime.now(UTC).timestamp()
    (stored_at,) = (each for each in sink.times if each is not None)
    assert before - 1 < stored_at < after + 1
