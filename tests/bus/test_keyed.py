"""Keyed streams over a real nats-server: how they are made, and what goes wrong with them alone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.bus import keyed as keyed_module
from broker.bus import streams
from broker.errors import Unavailable
from broker.subjects import Names
from tests.support.bus import Recorder, loaded, ready_bus
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from broker.bus.base import Record
    from broker.bus.nats import NatsBus
    from tests.support.nats import NatsServer


@asynccontextmanager
async def fed(bus: NatsBus, feed: Recorder) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.keyed("STATE").run, feed)
        yield
        nursery.cancel_scope.cancel()


async def test_the_stream_is_ours_and_as_configured(nats: NatsServer) -> None:
    """It keeps one message per key, refuses rather than drops, and has markers, batches and our mark."""
    section = config.State(max_bytes=1 << 20)
    async with ready_bus(nats.url, kept_by_key=[streams.state(section, Names(), 1)]) as (bus, _):
        feed = Recorder()
        async with fed(bus, feed):
            await feed.until(lambda: feed.up)
            async with connect(nats.url) as client:
                found = (await client.api("STREAM.INFO.STATE"))["config"]
        standing = await bus.examine("STATE")
        assert (standing.ours, standing.fault, standing.changes) == (True, None, ())
        assert "STATE" in bus.streams
    assert found["metadata"]["broker_stream"].startswith("STATE ")
    wanted = {
        "subjects": ["state.>"],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "max_bytes": 1 << 20,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": 7 * 86400 * 10**9,
        "storage": "file",
    }
    assert {key: found[key] for key in wanted} == wanted
    assert not found.get("max_age")


async def test_events_do_not_wait_for_a_stream_that_cannot_be_used(nats: NatsServer) -> None:
    """Somebody else's stream of that name stands in the way, until it is gone; then documents are there."""
    async with connect(nats.url) as client:
        await client.api("STREAM.CREATE.STATE", name="STATE", subjects=["other.>"])
    async with ready_bus(nats.url) as (bus, sink):
        feed = Recorder()
        async with fed(bus, feed):
            for _ in range(3):
                await bus.publish("events.acme.a", b"1")
            await sink.until(lambda: len(sink.records) == 3)
            assert not feed.up
            with pytest.raises(Unavailable):
                await bus.keyed("STATE").put("state.acme.a", b"{}", headers={}, revision=0)
            async with connect(nats.url) as client:
                await client.api("STREAM.DELETE.STATE")
            await feed.until(lambda: feed.up)
            await bus.keyed("STATE").put("state.acme.a", b"{}", headers={}, revision=0)
            await feed.until(lambda: len(feed.records) == 1)
        assert sink.interruptions == 0


async def test_a_feed_that_fails_stops_no_events(nats: NatsServer) -> None:
    """What the receiver of documents raises comes out of `run`; the connection and the events go on."""

    class Failing(Recorder):
        def stored(self, records: list[Record], head: int, times: Sequence[int]) -> None:
            if records:
                raise RuntimeError("the receiver is broken")
            super().stored(records, head, times)

    async with ready_bus(nats.url) as (bus, sink):
        keyed = bus.keyed("STATE")
        for _ in range(3):
            feed = Failing()
            with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="broken")):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keyed.run, feed)
                    await feed.until(partial(getattr, feed, "up"))
                    found = await keyed.get("state.acme.a")
                    await keyed.put("state.acme.a", b"{}", headers={}, revision=found[0] if found else 0)
                    await feed.until(lambda: False)
        await bus.publish("events.acme.a", b"1")
        await sink.until(lambda: len(sink.records) == 1)
        assert sink.interruptions == 0


async def test_a_full_stream_refuses_new_documents(nats: NatsServer) -> None:
    """Nothing is dropped; a document that is there can still be replaced by a smaller one."""
    section = config.State(max_bytes=64 * 1024)
    async with ready_bus(nats.url, kept_by_key=[streams.state(section, Names(), 1)]) as (bus, _):
        feed = Recorder()
        async with fed(bus, feed):
            await feed.until(lambda: feed.up)
            keyed = bus.keyed("STATE")
            for number in range(7):
                await keyed.put(f"state.acme.{number}", bytes(8000), headers={}, revision=0)
            for _ in range(3):
                with pytest.raises(Unavailable, match="maximum bytes"):
                    await keyed.put("state.acme.7", bytes(16000), headers={}, revision=0)
            assert len((await loaded(keyed, ["state.>"], at_least=7)).records) == 7
            assert await keyed.put("state.acme.3", b"", headers={}, revision=4) == 8


async def test_how_far_back_deletions_are_known(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stream that is older than its markers, a mark tells that a position is young enough."""
    async with ready_bus(nats.url) as (bus, _):
        feed = Recorder()
        async with fed(bus, feed):
            await feed.until(lambda: feed.up)
            keyed = bus.keyed("STATE")
            await keyed.put("state.acme.a", b"1", headers={}, revision=0)
            assert await keyed.remembers(0)  # the stream is young
            monkeypatch.setattr(keyed_module, "created_at", lambda _: 0.0)
            assert await keyed.remembers(0)
            for number in range(1, 4):
                await keyed.put("state.acme.a", b"1", headers={}, revision=number)
            assert not await keyed.remembers(1)  # nothing is left that says when 2 and 3 were stored
            assert await keyed.remembers(3)
            await keyed.mark(1)
            for number in (4, *range(6, 9)):
                await keyed.put("state.acme.a", b"1", headers={}, revision=number)
            assert await keyed.remembers(4)
            assert not await keyed.remembers(3)
            await keyed.mark(1)  # another broker does the same: there is one already
            await keyed.mark(2)
            found = await loaded(keyed, ["state._broker.>"], at_least=9)
            assert [record[2] for record in found.records] == [b"1", b"2"]
