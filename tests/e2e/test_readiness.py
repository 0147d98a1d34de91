"""What `/readyz` says, and that finding it out leaves nothing in the stream of the events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.support.metrics import scrape
from tests.support.raw import ask

if TYPE_CHECKING:
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 60


async def readyz(broker: Broker) -> tuple[int, str]:
    answer = await ask(broker.running.admin, "/readyz")
    return answer.status, answer.body.decode()


async def until(broker: Broker, status: int, text: str = "") -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while (found := await readyz(broker))[0] != status or text not in found[1]:
            await trio.sleep(0.05)


async def edit(publisher: RawNats, **change: object) -> None:
    found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
    assert "error" not in await publisher.api("STREAM.UPDATE.EVENTS", **found | change)


async def test_the_stream_holds_events_alone(broker: Broker, publisher: RawNats) -> None:
    """Not one sequence of it is the broker's, however often it has looked; positions are those of events."""
    async with broker.client() as client:
        await client.subscribe(">")
        with trio.fail_after(PATIENCE_SECONDS):
            while (await scrape(broker.running.admin)).total("broker_canary_travel_seconds_count") < 3:
                await trio.sleep(0.1)
        assert (await readyz(broker))[0] == 200
        state = (await publisher.api("STREAM.INFO.EVENTS"))["state"]
        assert (state["messages"], state["last_seq"]) == (0, 0)
        assert await publisher.store("events.acme.a", b"1") == 1
        assert (await client.events(1))[0]["position"].endswith("-1")


async def test_a_full_stream(broker: Broker, publisher: RawNats) -> None:
    """A stream that refuses what is new when it is full makes the broker unready, until there is room."""
    async with broker.client() as client:
        await client.subscribe(">")
        await publisher.store("events.acme.a", b"1")
        await edit(publisher, max_msgs=1, discard="new")
        await until(broker, 503, "the stream EVENTS is full: max_msgs=1 with discard=new")
        assert b"maximum messages exceeded" in (await publisher.request("events.acme.a", b"2")).body
        await client.send("publish", {"channel": "a", "event": 2}, messageId="1")
        assert (await client.until("error"))["code"] == "unavailable"
        await edit(publisher, max_msgs=100)
        await client.send("publish", {"channel": "a", "event": 3}, messageId="2")
        await client.until("published")
        await until(broker, 200)
        await client.position()
        assert [each["payload"]["event"] for each in client.log if each["type"] == "event"] == [1, 3]


async def test_what_brokers_say_is_nobody_elses(broker: Broker, publisher: RawNats) -> None:
    """The tenant `_broker` stays reserved: nothing under it is delivered, or believed, whoever wrote it."""
    ban = b'{"kind":"tenant","tenant":"acme","at":0,"version":1}'
    async with broker.client() as client:
        await client.subscribe([">", "live.>"])
        await publisher.store("events._broker.canary.x", b"1")
        for subject in ("live._broker.control", "live._broker.usage.x", "live._broker.a"):
            await publisher.publish(subject, ban)
        await publisher.store("events.acme.end", b"1")
        assert [event["channel"] for event in await client.events(1)] == ["end"]
    async with broker.client() as client:
        await client.subscribe("a")
    with trio.fail_after(PATIENCE_SECONDS):
        while not (await publisher.api("STREAM.INFO.DEADLETTER"))["state"]["messages"]:
            await trio.sleep(0.05)
