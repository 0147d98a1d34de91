"""Whether the stream of the events takes one is found out without giving it one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from broker.bus.probe import Probe
from broker.errors import Unavailable
from broker.subjects import Names
from tests.support.bus import PATIENCE_SECONDS, ready_bus, running_bus

if TYPE_CHECKING:
    from broker.bus.nats import NatsBus
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

ROOM = {"max_msgs": 3, "max_bytes": 300}


async def edit(publisher: RawNats, **change: object) -> None:
    found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
    assert "error" not in await publisher.api("STREAM.UPDATE.EVENTS", **found | change)


async def closed(bus: NatsBus) -> str:
    """Why the stream takes no event, over and over; nothing when it does."""
    answers = set()
    for _ in range(3):
        try:
            await bus.probe()
            answers.add("")
        except Unavailable as error:
            answers.add(error.message)
    [answer] = answers
    return answer


async def test_nothing_is_stored(nats: NatsServer, publisher: RawNats) -> None:
    """Neither probes nor canaries leave anything in the stream, not even a sequence."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.subscribe_live("_broker.seen.>")
        for number in range(3):
            await bus.probe()
            await bus.publish("_broker.canary.me", str(number).encode())
        await sink.until(lambda: len(sink.messages) == 3)
        assert [(subject, body) for _, subject, body, _ in sink.messages] == [
            ("_broker.seen.me", b"0"),
            ("_broker.seen.me", b"1"),
            ("_broker.seen.me", b"2"),
        ]
        state = (await publisher.api("STREAM.INFO.EVENTS"))["state"]
        assert (state["messages"], state["last_seq"]) == (0, 0)
        own = (await publisher.api("STREAM.INFO.BROKER"))["state"]
        assert own["messages"] == 1, "of each broker the newest canary alone is kept"


@pytest.mark.parametrize("limit", ["max_msgs", "max_bytes"])
async def test_a_full_stream(nats: NatsServer, publisher: RawNats, limit: str) -> None:
    """One that would rather refuse the new than lose the old is found full, whoever has filled it."""
    async with ready_bus(nats.url) as (bus, _):
        await edit(publisher, **{"discard": "new", limit: ROOM[limit]})
        assert await closed(bus) == ""
        while b"error" not in (await publisher.request("events.acme.a", b"x" * 40)).body:
            pass
        assert f"{limit}={ROOM[limit]} with discard=new" in await closed(bus)
        await edit(publisher, discard="old")
        assert await closed(bus) == "", "full, but makes room"


async def test_a_refused_publication(nats: NatsServer, publisher: RawNats) -> None:
    """It counts until one is accepted; one that found no room under its own subject alone does not."""
    async with ready_bus(nats.url) as (bus, _):
        await edit(publisher, max_msgs_per_subject=1, discard="new", discard_new_per_subject=True)
        await bus.publish("events.acme.a", b"1")
        with pytest.raises(Unavailable, match="per subject"):
            await bus.publish("events.acme.a", b"1")
        assert await closed(bus) == ""
        await edit(publisher, max_bytes=2000)
        await bus.publish("events.acme.b", b"1")
        with pytest.raises(Unavailable, match="maximum bytes"):
            await bus.publish("events.acme.c", b"x" * 2000)
        assert "did not store the last event: events.acme.c: maximum bytes exceeded" in await closed(bus)
        await bus.publish("events.acme.d", b"1")
        assert await closed(bus) == ""


async def test_nobody_answers(nats: NatsServer) -> None:
    """Where no stream takes events, the server says so at once."""
    async with ready_bus(nats.url) as (bus, _):
        probe = Probe(bus.jetstream, "EVENTS", Names(events="nowhere"))
        with pytest.raises(Unavailable, match=r"nobody answers on nowhere\._broker\.probe: no stream"):
            await probe.ask()


async def test_no_answer_in_time(nats: NatsServer) -> None:
    """A server that stands still is not waited for longer than 2 s."""
    async with ready_bus(nats.url) as (bus, _):
        nats.stop()
        threads = list(Path(f"/proc/{nats.process.pid}/task").iterdir())
        while any((each / "stat").read_text().rpartition(")")[2].split()[0] != "T" for each in threads):
            await trio.sleep(0.01)
        with pytest.raises(Unavailable, match="did not answer within 2 s"):
            await bus.probe()
        nats.cont()


async def test_the_feed_gives_signs(nats: NatsServer) -> None:
    """Also while nothing is stored; none while NATS stands still, before the connection is given up."""
    async with running_bus(nats.url) as (bus, sink):
        await sink.until(lambda: sink.up)
        first = bus.heard
        assert first is not None
        with trio.fail_after(PATIENCE_SECONDS):
            while bus.heard == first:
                await trio.sleep(0.05)
