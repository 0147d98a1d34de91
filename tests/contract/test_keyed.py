"""What `bus.base.Keyed` promises, over a real nats-server's stream and the scripted one alike."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker.bus.base import Stale
from broker.errors import TooLarge, Unavailable
from tests.support.bus import Recorder, loaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.bus.base import AnyPut, Keyed, KeyedPut, Record
    from tests.contract.streams import Stream

PERSISTENT = 3


def has_come_to(feed: Recorder, sequence: int) -> bool:
    return feed.sequences[-1:] == [sequence]


def plain(record: Record | None) -> Record | None:
    """A record without the headers that are for NATS."""
    if record is None:
        return None
    own = {name: value for name, value in (record[3] or {}).items() if not name.startswith("Nats-")}
    return (*record[:3], own or None)


@asynccontextmanager
async def fed(stream: Stream) -> AsyncIterator[tuple[Keyed, Recorder]]:
    """The keyed stream, and who gets its feed."""
    keyed, feed = stream.bus.keyed("STATE"), Recorder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyed.run, feed)
        await feed.until(lambda: feed.up)
        yield keyed, feed
        nursery.cancel_scope.cancel()


async def test_the_feed_begins_at_the_end_and_brings_each_change(stream: Stream) -> None:
    """What is stored from then on, with its revision and headers; deletions are records like others."""
    async with fed(stream) as (keyed, feed):
        assert (feed.states[0].first, feed.states[0].last, feed.states[0].per_subject) == (1, 0, 1)
        assert feed.heads == [0]
        assert feed.states[0].incarnation != stream.sink.states[0].incarnation
        assert await stream.put_key("state.acme.a", b'{"n":1}') == 1
        assert await keyed.put("state.acme.b", b"{}", headers={"Broker-X": "y"}, revision=0) == 2
        assert await keyed.put("state.acme.a", b"", headers={}, revision=1) == 3
        await feed.until(lambda: feed.sequences[-1:] == [3])
        assert plain(feed.records[-1]) == (3, "state.acme.a", b"", None)
        assert [plain(each) for each in feed.records if each[0] == 2] == [
            (2, "state.acme.b", b"{}", {"Broker-X": "y"})
        ]
    async with fed(stream) as (_, again):
        await stream.put_key("state.acme.c", b"{}")
        await again.until(lambda: again.sequences[-1:] == [4])
        assert again.sequences == [4]


async def test_a_put_replaces_what_it_names(stream: Stream) -> None:
    """Whoever names another revision is told so, as often as it tries, and changes nothing."""
    async with fed(stream) as (keyed, _):
        first = await keyed.put("state.acme.a", b"1", headers={}, revision=0)
        for wrong in (0, first + 1) * PERSISTENT:
            with pytest.raises(Stale):
                await keyed.put("state.acme.a", b"x", headers={}, revision=wrong)
        with pytest.raises(Stale):
            await keyed.put("state.acme.b", b"x", headers={}, revision=first)
        second = await keyed.put("state.acme.a", b"2", headers={"A": "b"}, revision=first)
        assert plain(await keyed.get("state.acme.a")) == (second, "state.acme.a", b"2", {"A": "b"})
        assert await keyed.get("state.acme.b") is None
        with pytest.raises(ValueError, match="subject"):
            await keyed.put("state.acme.a b", b"2", headers={}, revision=0)
        with pytest.raises(ValueError, match="line break"):
            await keyed.put("state.acme.a", b"2", headers={"A": "b\r\nc: d"}, revision=second)
        with pytest.raises(TooLarge):
            await keyed.put("state.acme.a", bytes(2 << 20), headers={}, revision=second)


async def test_several_puts_are_all_or_none(stream: Stream) -> None:
    """With a stale one among them, first or last, nothing of a batch is stored."""
    async with fed(stream) as (keyed, feed):
        puts = [(f"state.acme.{name}", b"1", {"N": name}, 0) for name in "abc"]
        first = await keyed.put_all(puts)
        assert first == [1, 2, 3]
        for stale in range(3):
            wrong: list[KeyedPut] = [
                (f"state.acme.{name}", b"2", {}, 9 if at == stale else first[at])
                for at, name in enumerate("abc")
            ]
            with pytest.raises(Stale):
                await keyed.put_all(wrong)
        assert await keyed.put_all([("state.acme.a", b"3", {}, 1)]) == [4]
        await feed.until(lambda: feed.sequences[-1:] == [4])
        assert [record[2] for record in feed.records if record[0] == 4] == [b"3"]
        found = await loaded(keyed, ["state.acme.>"], at_least=4)
        assert [record[:3] for record in found.records] == [
            (2, "state.acme.b", b"1"),
            (3, "state.acme.c", b"1"),
            (4, "state.acme.a", b"3"),
        ]
        assert plain(found.records[0]) == (2, "state.acme.b", b"1", {"N": "b"})


async def test_puts_together_are_each_by_itself(stream: Stream) -> None:
    """In their order, whatever becomes of the others; without a revision whatever is there is replaced."""
    async with fed(stream) as (keyed, feed):
        puts: list[AnyPut] = [
            ("state.acme.a", b"1", {}, 0),
            ("state.acme.a", b"2", {}, 0),
            ("state.acme.a", b"3", {"N": "3"}, None),
            ("state.acme.b", b"", {"Nats-TTL": "60s"}, 7),
            ("state.acme.b", b"4", {}, 0),
        ]
        found = await keyed.put_each(puts)
        assert [each if isinstance(each, int) else type(each) for each in found] == [1, Stale, 2, Stale, 3]
        await feed.until(lambda: feed.sequences[-1:] == [3])
        assert plain(await keyed.get("state.acme.a")) == (2, "state.acme.a", b"3", {"N": "3"})
        with pytest.raises(ValueError, match="header"):
            await keyed.put_each([("state.acme.c", b"", {"N": "a\r\nb"}, 0)])


async def test_a_load_has_the_newest_of_each_key(stream: Stream) -> None:
    """Of subjects and filters, over more keys than one request brings; deletions too, unknown ones not."""
    async with fed(stream) as (keyed, feed):
        names = [f"state.acme.board.{number}" for number in range(1050)]
        for start in range(0, len(names), 50):
            await keyed.put_all([(name, b"{}", {}, 0) for name in names[start : start + 50]])
        await keyed.put(names[7], b"", headers={}, revision=8)
        last = await keyed.put("state.globex.board.1", b"{}", headers={}, revision=0)
        await feed.until(lambda: feed.heads[-1:] == [last])
        found = await loaded(keyed, ["state.acme.board.*"], at_least=last)
        assert found.incarnation == feed.states[0].incarnation
        assert [record[0] for record in found.records] == [each for each in range(1, 1052) if each != 8]
        assert found.records[-1][1:3] == (names[7], b"")
        wanted = [names[3], "state.acme.none", "state.globex.>", names[3]]
        found = await loaded(keyed, wanted, at_least=last)
        assert [record[1] for record in found.records] == [names[3], "state.globex.board.1"]
        assert (await loaded(keyed, ["state.acme.none", "state.none.>"], at_least=last)).records == []
        with pytest.raises(Unavailable):
            await loaded(keyed, [names[0]], at_least=last + 1)
        assert await keyed.remembers(0)
        count = await keyed.count()
        assert (count.incarnation, count.last, count.messages) == (found.incarnation, last, 1051)
        assert sorted(await keyed.keys("state.acme.>", at_least=last)) == sorted(names)
        assert await keyed.keys("state.none.>", at_least=last) == []
        with pytest.raises(Unavailable):
            await keyed.keys("state.acme.>", at_least=last + 1)


async def test_after_an_interruption_the_feed_goes_on(stream: Stream) -> None:
    """Requests are refused meanwhile; then what was stored comes, and nothing twice."""
    async with fed(stream) as (keyed, feed):
        await keyed.put("state.acme.a", b"1", headers={}, revision=0)
        await feed.until(lambda: feed.sequences == [1])
        for _ in range(PERSISTENT):
            await stream.leave()
            await feed.until(lambda: not feed.up)
            with pytest.raises(Unavailable):
                await keyed.put("state.acme.a", b"x", headers={}, revision=1)
            with pytest.raises(Unavailable):
                await loaded(keyed, ["state.acme.a"], at_least=0)
            await stream.come_back()
            await feed.until(lambda: feed.up)
            last = await stream.put_key("state.acme.b", b"1")
            await feed.until(partial(has_come_to, feed, last))
        assert {state.incarnation for state in feed.states} == {feed.states[0].incarnation}
        assert feed.sequences == sorted(set(feed.sequences))


async def test_another_stream_is_another_incarnation(stream: Stream) -> None:
    """The feed begins anew, from the first record of the new stream."""
    async with fed(stream) as (keyed, feed):
        for number in range(5):
            await keyed.put(f"state.acme.{number}", b"1", headers={}, revision=0)
        await feed.until(lambda: len(feed.records) == 5)
        await stream.remake_keys()
        await stream.put_key("state.acme.new", b"2")
        await feed.until(lambda: len(feed.states) > 1 and [each[2] for each in feed.records] == [b"2"])
        assert feed.states[-1].incarnation != feed.states[0].incarnation
        found = await loaded(keyed, ["state.>"], at_least=1)
        assert (found.incarnation, len(found.records)) == (feed.states[-1].incarnation, 1)
        assert stream.sink.interruptions == 0
