"""What `bus.base.Bus` and `Sink` promise, over a real nats-server and the scripted bus alike.

What a server alone can do wrong, and what `NatsBus` promises besides, is in `tests/bus`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker.bus.base import Page, Stale, StreamState
from broker.errors import Timeout, TooLarge, Unavailable
from broker.ranges import Ranges
from tests.support.bus import Recorder
from tests.support.unread import BURST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.bus.base import Bus, Record
    from tests.contract.streams import Stream

PERSISTENT = 3  # times that a fault is met: one that goes away by itself would not be one


def requests(bus: Bus) -> list[Callable[[], Awaitable[object]]]:
    """All that asks NATS for something, but for what takes events out."""
    archive = bus.archive("EVENTS")
    return [
        partial(bus.publish, "events.acme.a", b"1"),
        partial(bus.publish_all, [("events.acme.a", b"1", "id")]),
        partial(bus.publish_live, "live.acme.a", b"1"),
        partial(bus.subscribe_live, "live.acme.never"),
        bus.probe,
        bus.prepare_audit,
        bus.state,
        bus.usage,
        partial(bus.tally, "events.>", token=1),
        partial(bus.read, "events.>", after=0, limit=1),
        partial(bus.last, ["events.acme.a"], up_to=1),
        partial(bus.subjects, "events.>", limit=1),
        partial(bus.sequence_at, datetime.now(UTC)),
        partial(archive.after, ">", 0, limit=1),
        partial(archive.before, ">", None, limit=1),
        partial(archive.sequence_at, datetime.now(UTC)),
        partial(archive.get, 1),
        *(
            request
            for values in (bus.cursors, bus.control)
            for request in (
                partial(values.get, "user.a"),
                partial(values.put, "user.a", b"1", revision=0),
                partial(values.put_all, [("user.a", b"1", 0)]),
                partial(values.count, "user"),
                partial(values.news, "user", None),
            )
        ),
    ]


async def read_all(bus: Bus, subject: str, *, limit: int) -> list[Record]:
    records: list[Record] = []
    pending = 1
    while pending:
        page = await bus.read(subject, after=records[-1][0] if records else 0, limit=limit)
        assert len(page.records) <= limit
        assert page.records or not page.pending, "empty though something is pending"
        records += page.records
        pending = page.pending
    return records


def has_come_to(sink: Recorder, sequence: int) -> bool:
    return sink.heads[-1:] == [sequence]


# --- the feed


async def test_the_feed_begins_with_the_state_and_the_head(stream: Stream) -> None:
    """The sink learns what the stream holds, then where the feed begins, before any record."""
    sink = stream.sink
    await sink.until(lambda: bool(sink.heads))
    assert (sink.states[0].first, sink.states[0].last) == (1, 0)
    assert sink.heads == [0]
    assert sink.times == []
    assert sink.states[0].incarnation.isalnum()
    assert sink.states[0].incarnation.islower()
    assert stream.bus.heard is not None


async def test_records_come_as_they_were_published(stream: Stream) -> None:
    """Sequence, subject, body and headers of a record are what any NATS client sent, byte for byte."""
    before = datetime.now(UTC).timestamp()
    await stream.put("events.acme.orders.7", b'{ "a" : 1 }\n')
    await stream.put("events.acme.b", b"", {"ce-id": "7", "ce-type": "a b"})
    await stream.sink.until(lambda: len(stream.sink.records) == 2)
    assert stream.sink.records == [
        (1, "events.acme.orders.7", b'{ "a" : 1 }\n', None),
        (2, "events.acme.b", b"", {"ce-id": "7", "ce-type": "a b"}),
    ]
    first, second = stream.sink.times
    assert before - 1 < first / 1e9 < second / 1e9 < datetime.now(UTC).timestamp() + 1


async def test_the_feed_brings_what_was_stored_meanwhile(stream: Stream) -> None:
    """After each of several interruptions it goes on behind its head: no hole, nothing twice."""
    sink = stream.sink
    for interruptions in range(1, 4):
        for _ in range(20):
            await stream.put()
        if interruptions % 2:  # else some may be on their way
            await sink.until(partial(has_come_to, sink, 21 * interruptions - 1))
        await stream.leave()
        assert (sink.up, sink.interruptions) == (False, interruptions)
        await stream.come_back()
        await stream.put()
        await sink.until(partial(has_come_to, sink, 21 * interruptions))
    assert sink.sequences == list(range(1, 3 * 21 + 1))
    assert len({state.incarnation for state in sink.states}) == 1
    assert sink.reaches == len(sink.states) == 4


async def test_nats_is_reached_when_the_sink_has_read_what_it_needs(stream: Stream) -> None:
    """While `reached` fails there is no `restored` and no record; it is called again until it does not."""
    sink = stream.sink
    await sink.until(lambda: bool(sink.heads))
    sink.refusals = PERSISTENT
    await stream.leave()
    await stream.come_back()
    await stream.put()
    await sink.until(lambda: len(sink.records) == 1)
    assert sink.refusals == 0
    assert (sink.reaches, len(sink.states)) == (2 + PERSISTENT, 2)


async def test_what_was_deleted_unread_is_said(stream: Stream) -> None:
    """A hole, and a beginning that is gone: the recorder holds it against whoever leaves them out unsaid."""
    sink = stream.sink
    await stream.put()
    await sink.until(lambda: sink.sequences == [1])
    await stream.change_unseen(puts=5, delete=[3, 4])
    await sink.until(lambda: sink.sequences == [1, 2, 5, 6])
    await stream.change_unseen(puts=4, delete=[*(1, 2, 5, 6), 7, 8])
    await sink.until(lambda: sink.sequences == [1, 2, 5, 6, 9, 10])
    assert sink.states[-1].first == 9
    assert {each.incarnation for each in sink.states} == {sink.states[0].incarnation}


async def test_what_was_deleted_during_the_feed_is_said(stream: Stream) -> None:
    """Without an interruption: before what follows it, with the stream as it is by then."""
    sink, gone = stream.sink, [BURST - 1000, BURST - 999, BURST - 500]
    await stream.burst_unread(delete=gone)
    await sink.until(partial(has_come_to, sink, BURST))
    assert sink.sequences == [each for each in range(1, BURST + 1) if each not in gone]
    assert sink.skips
    assert sink.skips[-1].deleted == Ranges.of(gone)
    assert (sink.interruptions, len(sink.states)) == (0, 1)


async def test_a_purge_moves_nothing(stream: Stream) -> None:
    """Sequences go on behind a purge, and so does the feed, in the same incarnation."""
    sink = stream.sink
    for _ in range(5):
        await stream.put()
    await sink.until(lambda: len(sink.records) == 5)
    assert await stream.bus.archive("EVENTS").purge(">") == 5
    await stream.put()
    await sink.until(lambda: sink.sequences == [1, 2, 3, 4, 5, 6])
    assert sink.interruptions == 0


async def test_a_stream_made_anew_is_read_from_its_beginning(stream: Stream) -> None:
    """Its incarnation is another one, and its first events have the sequences that others had."""
    sink = stream.sink
    for _ in range(3):
        await stream.put(body=b"old")
    await sink.until(lambda: len(sink.records) == 3)
    await stream.remake()
    await sink.until(lambda: len(sink.states) == 2)
    for _ in range(2):
        await stream.put(body=b"new")
    await sink.until(lambda: len(sink.records) == 2)
    assert (sink.sequences, sink.bodies) == ([1, 2], [b"new"] * 2)
    assert sink.states[0].incarnation != sink.states[1].incarnation == (await stream.bus.state()).incarnation
    assert (await stream.bus.read("events.>", after=0, limit=1)).records == sink.records[:1]


# --- while NATS is away


async def test_everything_is_unavailable_while_nats_is_away(stream: Stream) -> None:
    """Each request is refused at once, however often, with a time to try again; none is kept for later."""
    bus, sink = stream.bus, stream.sink
    archive = bus.archive("EVENTS")
    asked = requests(bus)
    asked += [partial(archive.delete, 1), partial(archive.purge, ">")]
    await bus.subscribe_live("live.acme.>")
    await stream.leave()
    for _ in range(PERSISTENT):
        for request in asked:
            with pytest.raises(Unavailable) as caught, trio.fail_after(4):
                await request()
            assert caught.value.retry_after
    await stream.come_back()
    await sink.until(lambda: sink.up)
    assert (await bus.publish("events.acme.a", b"2")).sequence == 1
    assert await bus.control.get("user.a") is None
    await stream.say("live.acme.never", b"once")
    await stream.say("live.acme.a", b"last")
    await sink.until(lambda: sink.messages[-1:] == [(0, "live.acme.a", b"last", None)])
    assert len(sink.messages) == 2, "a subscription that was refused was made all the same"


async def test_requests_are_answered_after_each_interruption(stream: Stream) -> None:
    """Once `restored` has been said, nothing is `Unavailable` any more."""
    for _ in range(PERSISTENT):
        await stream.leave()
        await stream.come_back()
        await stream.sink.until(lambda: stream.sink.up)
        for request in requests(stream.bus):
            with suppress(Stale):
                await request()


async def test_live_subscriptions_outlive_an_interruption(stream: Stream) -> None:
    """They are there again by the time of `restored`; one that was given up meanwhile is not."""
    bus, sink = stream.bus, stream.sink
    await bus.subscribe_live("live.acme.kept")
    await bus.subscribe_live("live.acme.dropped")
    await stream.leave()
    await bus.unsubscribe_live("live.acme.dropped")
    await stream.come_back()
    await sink.until(lambda: sink.up)
    await stream.say("live.acme.dropped", b"1")
    await stream.say("live.acme.kept", b"2")
    await sink.until(lambda: bool(sink.messages))
    assert sink.messages == [(0, "live.acme.kept", b"2", None)]


# --- publishing


async def test_publish_is_acknowledged_with_its_sequence(stream: Stream) -> None:
    """The acknowledgement names the record that `read` finds and the feed brings."""
    bus, sink = stream.bus, stream.sink
    ack = await bus.publish("events.acme.a", b"1", headers={"Broker-User": "zoë"})
    assert not ack.duplicate
    page = await bus.read("events.acme.a", after=0, limit=10)
    (sequence, subject, body, headers) = page.records[0]
    assert (sequence, subject, body) == (ack.sequence, "events.acme.a", b"1")
    assert headers is not None
    assert headers["Broker-User"] == "zoë"
    await sink.until(lambda: sink.sequences == [ack.sequence])


async def test_a_message_id_makes_a_retry_harmless(stream: Stream) -> None:
    """The second copy under one id is a duplicate with the first one's sequence; without an id none is."""
    bus = stream.bus
    first = await bus.publish("events.acme.a", b"1", message_id="acme:1")
    await bus.publish("events.acme.a", b"2", message_id="acme:2")
    for _ in range(PERSISTENT):
        again = await bus.publish("events.acme.a", b"1", message_id="acme:1")
        assert (again.sequence, again.duplicate) == (first.sequence, True)
    assert (await bus.publish("events.acme.a", b"1")).sequence == first.sequence + 2
    assert (await bus.publish("events.acme.a", b"1")).sequence == first.sequence + 3
    await stream.sink.until(lambda: stream.sink.bodies == [b"1", b"2", b"1", b"1"])


@pytest.mark.parametrize("fields", [{"A": "b\r\nNats-Rollup: sub"}, {"A": "b\nc"}, {"A\r": "b"}])
async def test_a_header_cannot_become_two(stream: Stream, fields: dict[str, str]) -> None:
    """Line breaks in headers are an error of the caller, for stored and live messages."""
    with pytest.raises(ValueError, match="line break"):
        await stream.bus.publish("events.acme.a", b"1", headers=fields)
    with pytest.raises(ValueError, match="line break"):
        await stream.bus.publish_live("live.acme.a", b"1", headers=fields)


async def test_a_subject_cannot_become_a_command(stream: Stream) -> None:
    """A blank or a line break in a subject is an error of the caller."""
    for subject in ("events.acme.a b", "events.acme.a\r\nPUB x 0", ""):
        for publish in (stream.bus.publish, stream.bus.publish_live):
            with pytest.raises(ValueError, match="subject"):
                await publish(subject, b"")
        with pytest.raises(ValueError, match="subject"):
            await stream.bus.publish_all([(subject, b"", "1")])


async def test_a_message_above_the_servers_limit_is_too_large(stream: Stream) -> None:
    """What the server would cut the connection for is refused before it is sent."""
    with pytest.raises(TooLarge):
        await stream.bus.publish("events.acme.a", bytes(1024 * 1024 + 1))
    with pytest.raises(TooLarge):
        await stream.bus.publish_live("live.acme.a", bytes(1024 * 1024 + 1))
    assert (await stream.bus.publish("events.acme.a", bytes(1024 * 1000))).sequence == 1
    assert stream.sink.interruptions == 0


async def test_many_are_stored_at_once(stream: Stream) -> None:
    """A batch is stored whole and in order; sent again under the same ids it is there once."""
    bus, sink = stream.bus, stream.sink
    batch = [(f"events.acme.c{number}", b"%d" % number, f"acme:{number}") for number in range(300)]
    await bus.publish_all(batch)
    await bus.publish_all(batch[200:])
    await bus.publish("events.acme.end", b"end")
    await sink.until(lambda: sink.bodies[-1:] == [b"end"])
    assert sink.bodies[:-1] == [body for _, body, _ in batch]


async def test_of_many_none_may_fail(stream: Stream) -> None:
    """One message that no stream takes makes the whole batch unavailable, and takes nobody else's answer."""
    bus, sink = stream.bus, stream.sink
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable):
            await bus.publish_all([("events.acme.a", b"1", "1"), ("nowhere.acme.a", b"2", "2")])
    await bus.publish_all([("events.acme.a", b"1", "1"), ("events.acme.a", b"3", "3")])
    await sink.until(lambda: sink.bodies == [b"1", b"3"])


async def test_a_publish_that_no_stream_takes_is_unavailable(stream: Stream) -> None:
    """Nobody acknowledges: that is no success."""
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable):
            await stream.bus.publish("nowhere.acme.a", b"1")


# --- services


async def test_a_service_is_asked_and_answers(stream: Stream) -> None:
    """With headers both ways; a request to another subject does not reach it."""
    async with stream.service("rpc.acme.a", ({"X": "y"}, b"answer")) as asked:
        for _ in range(PERSISTENT):
            answer = await stream.bus.request("rpc.acme.a", b"1", headers={"A": "b"}, seconds=5)
            assert answer == ({"X": "y"}, b"answer")
        with pytest.raises(Unavailable):
            await stream.bus.request("rpc.acme.b", b"2", headers={}, seconds=5)
    assert asked == [({"A": "b"}, b"1")] * PERSISTENT


async def test_what_no_service_has_received_is_unavailable(stream: Stream) -> None:
    """At once, however long the answer may take, and nothing is kept for a service that comes later."""
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable, match=r"rpc\.acme\.a"), trio.fail_after(15):
            await stream.bus.request("rpc.acme.a", b"1", headers={}, seconds=60)
    await stream.leave()
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable), trio.fail_after(15):
            await stream.bus.request("rpc.acme.a", b"1", headers={}, seconds=60)
    await stream.come_back()
    await stream.sink.until(lambda: stream.sink.up)
    async with stream.service("rpc.acme.a", ({}, b"")) as asked:
        await stream.bus.request("rpc.acme.a", b"2", headers={}, seconds=5)
    assert asked == [({}, b"2")]


async def test_what_a_service_may_have_received_is_no_unavailable(stream: Stream) -> None:
    """Without an answer in time the outcome is unknown."""
    async with stream.service("rpc.acme.a", None) as asked:
        for _ in range(PERSISTENT):
            with pytest.raises(Timeout):
                await stream.bus.request("rpc.acme.a", b"1", headers={}, seconds=0.2)
    assert len(asked) == PERSISTENT


async def test_a_request_cannot_become_something_else(stream: Stream) -> None:
    """Nor can it cost the connection: it is refused before it is sent."""
    for subject in ("rpc.acme.a b", "rpc.acme.a\r\nPUB x 0", ""):
        with pytest.raises(ValueError, match="subject"):
            await stream.bus.request(subject, b"", headers={}, seconds=1)
    with pytest.raises(ValueError, match="line break"):
        await stream.bus.request("rpc.acme.a", b"", headers={"A": "b\r\nC: d"}, seconds=1)
    with pytest.raises(TooLarge):
        await stream.bus.request("rpc.acme.a", bytes(1024 * 1024 + 1), headers={}, seconds=1)
    assert (await stream.bus.publish("events.acme.a", b"1")).sequence == 1


# --- live messages


async def test_live_messages_reach_whoever_subscribed(stream: Stream) -> None:
    """Once `subscribe_live` returned nothing is missed, and after `unsubscribe_live` nothing comes."""
    bus, sink = stream.bus, stream.sink
    await bus.subscribe_live("live.acme.>")
    await stream.say("live.acme.cursor.7", b"a", {"X": "y"})
    await stream.say("live.other.cursor.7", b"not ours")
    await bus.publish_live("live.acme.b", b"b")
    await sink.until(lambda: len(sink.messages) == 2)
    assert sink.messages == [(0, "live.acme.cursor.7", b"a", {"X": "y"}), (0, "live.acme.b", b"b", None)]
    await bus.unsubscribe_live("live.acme.>")
    await bus.unsubscribe_live("live.acme.>")
    await bus.publish_live("live.acme.b", b"c")
    await bus.subscribe_live("live.acme.last")
    await bus.publish_live("live.acme.last", b"d")
    await sink.until(lambda: sink.messages[-1][2] == b"d")
    assert [body for _, _, body, _ in sink.messages] == [b"a", b"b", b"d"]


async def test_live_subscriptions_of_one_subject_are_one(stream: Stream) -> None:
    """Tasks that subscribe one subject together do not make its messages come twice; others beside it do."""
    bus, sink = stream.bus, stream.sink
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(bus.subscribe_live, "live.acme.a")
    await bus.subscribe_live("live.*.b")
    await bus.subscribe_live("live.acme.b")
    for subject in ("live.acme.a", "live.acme.b", "live.acme.a"):
        await bus.publish_live(subject, b"1")
    await sink.until(lambda: len(sink.messages) >= 4 and sink.messages[-1][1] == "live.acme.a")
    assert [record[1] for record in sink.messages] == [f"live.acme.{each}" for each in "abba"]


# --- what the stream holds


async def test_state(stream: Stream) -> None:
    """First and last follow what is stored and purged; an empty stream begins after its end."""
    bus = stream.bus
    for _ in range(3):
        await stream.put()
    state = await bus.state()
    assert (state.first, state.last) == (1, 3)
    assert state.duplicate_window is None or state.duplicate_window > 0
    await bus.archive("EVENTS").purge(">")
    state = await bus.state()
    assert (state.first, state.last) == (4, 3)
    assert state.incarnation == stream.sink.states[0].incarnation


async def test_state_is_never_older_than_the_question(stream: Stream) -> None:
    """Whoever asks after an acknowledgement sees that record, also while others are asking."""

    async def publish_and_ask() -> None:
        ack = await stream.bus.publish("events.acme.a", b"1")
        assert (await stream.bus.state()).last >= ack.sequence

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(publish_and_ask)


async def test_read_pages_through_what_matches(stream: Stream) -> None:
    """Pages of any size add up to all records of a filter, in order; `pending` counts what is left."""
    bus = stream.bus
    for number in range(50):
        await bus.publish(f"events.acme.c{number % 3}.x", b"%d" % number)
    for limit in (1, 7, 1000):
        records = await read_all(bus, "events.acme.c1.>", limit=limit)
        assert [body for _, _, body, _ in records] == [b"%d" % n for n in range(1, 50, 3)]
    page = await bus.read("events.acme.*.x", after=10, limit=5)
    assert [record[0] for record in page.records] == [11, 12, 13, 14, 15][: len(page.records)]
    assert page.pending == 40 - len(page.records)
    for filter_, after in (("events.acme.>", 50), ("events.nobody.>", 0), ("events.acme.c1", 0)):
        assert await bus.read(filter_, after=after, limit=5) == Page(records=[], pending=0)


async def test_last_is_the_newest_of_each_up_to_a_sequence(stream: Stream) -> None:
    """Over more subjects than a server takes at once, in sequence order, unknown ones left out."""
    bus = stream.bus
    names = [f"events.acme.c{number}" for number in range(1100)]
    await bus.publish_all([(each, b"old", each) for each in names])
    await bus.publish(names[0], b"new")
    await bus.publish(names[1], b"newer")
    records = await bus.last([*reversed(names), "events.acme.unknown"], up_to=1101)
    assert [record[0] for record in records] == list(range(2, 1102))
    assert records[-1][1:3] == (names[0], b"new")
    assert await bus.last(["events.acme.unknown"], up_to=1102) == []
    assert await bus.last(names, up_to=0) == []
    assert await bus.last([], up_to=10) == []


async def test_subjects(stream: Stream) -> None:
    """All names under a filter, or None when there are more than the caller takes."""
    bus = stream.bus
    for number in range(20):
        await bus.publish(f"events.acme.c{number}", b"1")
    await bus.publish("events.other.c", b"1")
    found = await bus.subjects("events.acme.>", limit=20)
    assert found is not None
    assert sorted(found) == sorted(f"events.acme.c{number}" for number in range(20))
    assert await bus.subjects("events.acme.>", limit=19) is None
    assert await bus.subjects("events.nobody.>", limit=10) == []


async def test_sequence_at(stream: Stream) -> None:
    """The first record at or after a time, in any time zone; none when all are older."""
    bus, now = stream.bus, partial(datetime.now, UTC)
    assert await bus.sequence_at(now() - timedelta(days=1)) is None
    await stream.put()
    between = now()
    await stream.put()
    for sequence_at in (bus.sequence_at, bus.archive("EVENTS").sequence_at):
        assert await sequence_at(between - timedelta(days=1)) == 1
        assert await sequence_at(between) == 2
        assert await sequence_at(between.astimezone()) == 2
        assert await sequence_at(now()) is None


async def test_how_much_the_stream_holds_and_of_whom(stream: Stream) -> None:
    """Messages, bytes and sequences; counts by a token over all subjects under a filter."""
    bus = stream.bus
    empty = await bus.usage()
    assert (empty.messages, empty.bytes) == (0, 0)
    assert await bus.tally("events.>", token=1) == {}
    for number in range(12):
        await bus.publish(f"events.{('acme', 'acme', 'globex')[number % 3]}.c{number}", b"1234567890")
    usage = await bus.usage()
    assert (usage.messages, usage.first, usage.last) == (12, 1, 12)
    assert usage.bytes > 12 * 10
    assert await bus.tally("events.>", token=1) == {"acme": 8, "globex": 4}
    assert await bus.tally("events.acme.*", token=0) == {"events": 8}


async def test_an_archive(stream: Stream) -> None:
    """Entries forwards and backwards, one alone, and what is taken out."""
    archive = stream.bus.archive("EVENTS")
    assert await archive.before(">", None, limit=5) == []
    for number in range(1, 9):
        await stream.put(f"events.acme.{'ab'[number % 2]}", b"%d" % number, {"X": "y"})

    async def listed(subject: str, sequence: int | None, limit: int = 9) -> list[int]:
        return [each.sequence for each in await archive.before(subject, sequence, limit=limit)]

    assert [each.sequence for each in await archive.after("events.acme.a", 2, limit=2)] == [4, 6]
    assert await listed("events.acme.b", None, limit=3) == [7, 5, 3]
    assert await listed("events.acme.b", 3) == [1]
    [entry] = await archive.after(">", 7, limit=5)
    assert (entry.sequence, entry.subject, entry.body) == (8, "events.acme.a", b"8")
    assert entry.headers == {"X": "y"}
    assert abs(datetime.now(UTC) - entry.time) < timedelta(minutes=1)
    assert await archive.get(8) == entry
    assert await archive.get(9) is None
    assert await archive.delete(8)
    assert not await archive.delete(8)
    assert await archive.get(8) is None
    assert await archive.purge("events.acme.a") == 3
    assert await archive.purge("events.acme.a") == 0
    assert await listed(">", None) == [7, 5, 3, 1]


# --- callers that go away


async def test_requests_may_be_cancelled(stream: Stream) -> None:
    """A caller that goes away in the middle of a request leaves a bus that works."""

    async def ask(request: Callable[[], Awaitable[object]]) -> None:
        with suppress(Stale):  # an earlier put that was cancelled is stored all the same
            await request()

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for request in requests(stream.bus):
                nursery.start_soon(ask, request)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    ack = await stream.bus.publish("events.acme.last", b"1")
    await stream.sink.until(lambda: ack.sequence in stream.sink.sequences)
    assert stream.sink.interruptions == 0


def test_the_recorder_notices_what_it_is_for() -> None:
    """The sink of these tests fails on records out of order, unexplained holes and a second interruption."""
    sink = Recorder()
    with pytest.raises(AssertionError):
        sink.interrupted()
    with pytest.raises(AssertionError):
        sink.stored([], 1, ())
    sink.restored(StreamState(incarnation="a", first=1, last=3))
    sink.stored([], 0, ())
    with pytest.raises(AssertionError, match="nobody said so"):
        sink.stored([(1, "a", b"", None), (3, "a", b"", None)], 3, (1, 2))


async def test_single_records(stream: Stream) -> None:
    """By sequence, and the next that matches, each with when it was stored; none where there is none."""
    for name in ("a", "b", "a", "c"):
        await stream.put(f"events.acme.{name}", name.encode(), {"X-A": "1"} if name == "c" else None)
    await stream.sink.until(lambda: len(stream.sink.records) == 4)
    bus, sink = stream.bus, stream.sink
    page = await bus.get([1, 3, 4, 9])
    assert (page.records, page.pending) == ([sink.records[each] for each in (0, 2, 3)], 0)
    assert page.times == [sink.times[each] for each in (0, 2, 3)]
    assert (await bus.read(">", after=0, limit=9)).times == sink.times
    for after, found in (([0], [0]), ([1], [2]), ([3], []), ([3, 2, 1, 0, 0], [0, 2])):
        following = await bus.next("events.acme.a", after=after)
        assert following.records == [sink.records[each] for each in found]
        assert following.times == [sink.times[each] for each in found]
