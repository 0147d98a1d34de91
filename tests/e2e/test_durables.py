"""Durable subscriptions: a device that was offline picks up where it acknowledged, on any broker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.support.broker import Broker, configure, run_broker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


async def store(publisher: RawNats, *numbers: int) -> None:
    for number in numbers:
        await publisher.store("events.acme.a", str(number).encode())


async def test_goes_on_where_it_acknowledged(
    tmp_path: Path, nats: NatsServer, broker: Broker, publisher: RawNats
) -> None:
    """A cursor is the user's: on another broker the subscription starts after the acknowledged event."""
    async with broker.client() as client:
        answer = await client.subscribe("a", durable="phone")
        assert answer["live"]
        await store(publisher, 1, 2, 3)
        events = await client.events(3)
        await client.send(
            "acknowledge", {"durable": "phone", "position": events[1]["position"]}, messageId="1"
        )
        reply = await client.receive()
        assert reply == {
            "type": "acknowledged",
            "payload": {"durable": "phone", "position": events[1]["position"]},
            "messageId": "1",
        }
        # Lower is ignored, and said to be stored, which it is.
        await client.send(
            "acknowledge", {"durable": "phone", "position": events[0]["position"]}, messageId="2"
        )
        assert (await client.expect("acknowledged"))["position"] == events[0]["position"]
    await store(publisher, 4)
    async with run_broker(tmp_path / "two", configure(tmp_path / "broker", nats.url)) as other:
        async with other.client() as client:
            answer = await client.subscribe("a", durable="phone")
            assert answer["recovered"]
            assert answer["position"] == events[1]["position"]
            assert [event["event"] for event in await client.events(2)] == [3, 4]
        async with other.client(user="bob") as client:  # another user's cursor is another one
            await client.subscribe("a", durable="phone")
            await client.quiet()


async def test_stands_from_its_first_subscribe(broker: Broker, publisher: RawNats) -> None:
    """A cursor that was never acknowledged stands where it began, also with a start beside it."""
    await store(publisher, 1, 2, 3)
    await broker.caught_up()
    async with broker.client() as client:
        await client.subscribe("a", durable="late", last=2)
        assert [event["event"] for event in await client.events(2)] == [2, 3]
    await store(publisher, 4)
    await broker.caught_up()
    async with broker.client() as client:
        await client.subscribe("a", durable="late", last=1)
        assert [event["event"] for event in await client.events(3)] == [2, 3, 4]


async def test_refusals(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """One subscribe holds a name; a position above what was sent, or foreign, is none to acknowledge."""
    settings = configure(tmp_path / "b", nats.url, limits={"durables_per_user": 2})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        position = (await client.subscribe("a", durable="d"))["position"]
        incarnation, sequence = position.split("-")
        await client.send("subscribe", {"channel": "b", "durable": "d"})
        assert (await client.expect("error"))["code"] == "conflict"
        for wrong in (f"{incarnation}-{int(sequence) + 1000}", "other-1"):
            await client.send("acknowledge", {"durable": "d", "position": wrong})
            assert (await client.expect("error"))["code"] == "invalid_position"
        await client.send("acknowledge", {"durable": "e", "position": position})
        assert (await client.expect("error"))["code"] == "not_subscribed"
        await client.subscribe("b", durable="e")
        await client.send("subscribe", {"channel": "c", "durable": "f"})
        assert (await client.expect("error"))["code"] == "limit_subscriptions"
        await client.send("unsubscribe", {"channel": "a"})
        await client.expect("unsubscribed")
        assert (await client.subscribe("a2", durable="d"))["channel"] == ["a2"]


async def test_two_brokers_only_raise_a_cursor(
    tmp_path: Path, nats: NatsServer, broker: Broker, publisher: RawNats
) -> None:
    """Acknowledgements through two brokers at once: the higher one stands in the end."""
    settings = configure(tmp_path / "broker", nats.url)
    async with run_broker(tmp_path / "two", settings) as other:
        async with broker.client() as one, other.client() as two:
            await one.subscribe("a", durable="d")
            await two.subscribe("a", durable="d")
            await store(publisher, *range(20))
            first, second = await one.events(20), await two.events(20)
            async with trio.open_nursery() as nursery:
                for client, events, last in ((one, first, 9), (two, second, 15)):
                    wish = {"durable": "d", "position": events[last]["position"]}
                    nursery.start_soon(partial(client.send, "acknowledge", wish, messageId="x"))
            await one.until("acknowledged")
            await two.until("acknowledged")
        async with broker.client() as client:
            assert (await client.subscribe("a", durable="d"))["position"] == second[15]["position"]
