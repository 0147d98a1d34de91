"""`subscribe` with a `filter`: what passes comes, wherever it is read from, and P moves as without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask
from tests.support.polling import Poller
from tests.support.sse import listen, target

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

BIG = {"/n": {"gte": 10}}


async def store(publisher: RawNats, *numbers: int, channel: str = "a") -> int:
    sequence = 0
    for number in numbers:
        sequence = await publisher.store(f"events.acme.{channel}", b'{"n": %d}' % number)
    return sequence


async def numbers(client: Client, count: int) -> list[Any]:
    return [each["event"] and each["event"]["n"] for each in await client.events(count)]


async def test_live(broker: Broker, publisher: RawNats) -> None:
    """Stored and live events, a CloudEvent as it is delivered, tombstones; P passes what is left out."""
    async with broker.client() as client, broker.client() as other:
        assert (await client.subscribe(["a", "live.a"], filter=BIG))["live"]
        await other.subscribe("a")
        await store(publisher, 1, 10, 2, 11)
        await publisher.store("events.acme.a", b"")
        last = await store(publisher, 3)
        for number in (4, 12):
            await publisher.publish("live.acme.a", b'{"n": %d}' % number)
        found = await client.events(4)
        assert sorted(each["event"]["n"] for each in found if each["event"]) == [10, 11, 12]
        assert sum(each["event"] is None for each in found) == 1
        await client.passed(last)
        assert len(await other.events(6)) == 6
        await client.quiet()
        # The same event for the same connection by another subscription: it comes once, and all of them do.
        await client.subscribe("*")
        await store(publisher, 5, 13)
        assert await numbers(client, 2) == [5, 13]
        await client.quiet()


async def test_cloud_events(broker: Broker, publisher: RawNats) -> None:
    """A filter is about the event as clients get it."""
    async with broker.client() as client:
        await client.subscribe("a", filter={"/type": "paid", "/data/n": {"gt": 1}})
        for kind, number in (("paid", 1), ("sent", 2), ("paid", 3)):
            header = (
                f"NATS/1.0\r\nce-specversion: 1.0\r\nce-type: {kind}\r\nce-id: 1\r\nce-source: /s\r\n\r\n"
            )
            await publisher.store("events.acme.a", b'{"n": %d}' % number, header=header.encode())
        assert [each["event"]["data"]["n"] for each in await client.events(1)] == [3]
        await client.quiet()


async def test_starts(broker: Broker, publisher: RawNats) -> None:
    """A resume, a catch-up, `since`, `last`, which counts what passes, and a durable name."""
    async with broker.client() as client:
        position = (await client.subscribe("none"))["position"]
    await store(publisher, 1, 10, 2, 11, 3, 12, 4)
    await broker.caught_up()
    for start in ({"position": position}, {"since": "2020-01-01T00:00:00Z"}, {"last": 3}):
        async with broker.client() as client:
            answer = await client.subscribe("a", filter=BIG, **start)
            assert (answer["recovered"], answer["live"]) == (True, False)
            assert await numbers(client, 3) == [10, 11, 12]
            await client.until("subscription.live")
            await client.quiet()
    async with broker.client() as client:
        await client.subscribe("other")
        await client.subscribe("a", filter=BIG, last=2)
        found = [(each["event"]["n"], each["catch_up"]) for each in await client.events(2)]
        assert found == [(11, 1), (12, 1)]
        await client.until("subscription.live")
    async with broker.client() as client:
        await client.subscribe("a", filter=BIG, last=1, durable="d")
        [event] = await client.events(1)
        await client.until("subscription.live")
        await client.passed(await store(publisher, 5))
        await client.send(
            "acknowledge", {"durable": "d", "position": await client.position()}, messageId="acknowledged"
        )
        await client.until("acknowledged")
        assert event["event"]["n"] == 12
    await store(publisher, 6, 13)
    async with broker.client() as client:
        await client.subscribe("a", durable="d")
        assert await numbers(client, 2) == [6, 13]


async def test_from_the_stream(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """What no broker has in memory is filtered too, however much lies between."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 10})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            position = (await client.subscribe("none"))["position"]
        for number in range(600):
            await publisher.store("events.acme.a", b'{"n": %d}' % (number if number % 100 == 0 else -number))
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            await client.subscribe("a", position=position, filter={"/n": {"gte": 0}})
            assert await numbers(client, 6) == [0, 100, 200, 300, 400, 500]
            await client.until("subscription.live")
        async with broker.client() as client:
            await client.subscribe("a", last=3, filter={"/n": {"gte": 0}})
            assert await numbers(client, 3) == [300, 400, 500]


async def test_another_filter(broker: Broker, publisher: RawNats) -> None:
    """Subscribing again without a start replaces the filter, also of a catch-up; another token keeps it."""
    async with broker.client() as client:
        await client.subscribe("a", filter=BIG)
        await store(publisher, 1, 10)
        assert await numbers(client, 1) == [10]
        await client.subscribe("a", filter={"/n": {"lt": 10}})
        await store(publisher, 10, 1)
        assert await numbers(client, 1) == [1]
        await client.send("authenticate", {"token": broker.token(subscribe=[">"], deny=["a.secret"])})
        await client.until("connection.authenticated")
        await client.subscribe(["a.>"], filter=BIG)
        await client.send("authenticate", {"token": broker.token(subscribe=[">"], deny=["a.other"])})
        await client.until("connection.authenticated")
        await store(publisher, 2, 10, channel="a.secret")
        assert await numbers(client, 1) == [10]
        await client.subscribe("a")
        await store(publisher, 3, 10)
        assert await numbers(client, 2) == [3, 10]
        await client.quiet()


async def test_limits(tmp_path: Path, nats: NatsServer) -> None:
    """Of subscriptions with a filter on a connection, and of different filters in use of a tenant."""
    limits = {"filters_per_connection": 2, "filters_per_tenant": 2}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as client,
        broker.client() as other,
        broker.client("globex") as globex,
    ):
        answer = await client.subscribe(["a", "b", "c"], filter=BIG)
        assert answer["channel"] == ["a", "b"]
        assert [(each["channel"], each["code"]) for each in answer["refused"]] == [("c", "limit_filters")]
        await client.send("subscribe", {"channel": "d", "filter": BIG})
        refused = await client.until("error")
        assert (refused["code"], refused["retryable"]) == ("limit_filters", False)
        await client.subscribe("a", filter={"/n": 1})  # in the place of one
        await other.subscribe("a", filter=BIG)
        for here in (other, globex):
            await here.send("subscribe", {"channel": "b", "filter": {"/n": 2}})
        assert (await other.until("error"))["code"] == "limit_filters"
        await globex.until("subscribed")
        await client.send("unsubscribe", {"channel": "a"})
        await client.until("unsubscribed")
        await other.subscribe("b", filter={"/n": 2})


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"filter": []}, "payload.filter: must be an object"),
        ({"filter": {"status": 1}}, 'payload.filter["status"]'),
        ({"filter": {"any": [{}, {"/a": {"gtt": 1}}]}}, 'payload.filter.any[1]["/a"].gtt: unknown operator'),
        ({"filter": BIG, "snapshot": True}, "snapshot and filter"),
        ({"filter": json.loads('{"not":' * 900 + "{}" + "}" * 900)}, "payload.filter.not"),
        ({"filter": {"/a": "x" * 60_000}}, "payload.filter"),
    ],
    ids=["a list", "no pointer", "an operator", "a snapshot", "too deep", "too large"],
)
async def test_bad_filters(broker: Broker, payload: dict[str, Any], named: str) -> None:
    """The error names the node, and nothing has changed; over HTTP it says the same."""
    async with broker.client() as client:
        await client.send("subscribe", {"channel": "a", **payload}, messageId="1")
        refused = await client.until("error")
        assert refused["code"] == "bad_message"
        assert named in refused["message"]
        await client.subscribe("a")
    answer = await ask(
        broker.running.http, "POST", "/poll", token=broker.token(), json={"channels": ["a"], **payload}
    )
    assert answer.status == 400


async def test_without_websocket(broker: Broker, publisher: RawNats) -> None:
    """SSE and polls take it in the query, polls in the body too; a poll may change it."""
    url, token = broker.running.http, broker.token()
    for bad in ("{", '{"/a":{"gtt":1}}', "[]", "1"):
        for path in ("/sse", "/poll"):
            answer = await ask(url, "GET", target(path, ["a"], filter=bad), token=token)
            assert answer.status == 400, (path, bad)
            assert "filter" in answer.problem["detail"]
    poller = Poller(url, token, ["a"], {"filter": BIG})
    await poller.poll()
    first = await ask(url, "GET", target("/poll", ["a"], filter=json.dumps(BIG)), token=token)
    async with listen(url, "a", token=token, filter=json.dumps(BIG)) as stream:
        await stream.until("subscribed")
        last = await store(publisher, 1, 10, 2, 11)
        assert [each["event"]["n"] for each in await stream.events(2)] == [10, 11]
    again = {"session": first.json["session"], "position": first.json["position"], "filter": json.dumps(BIG)}
    await broker.caught_up()
    second = await ask(url, "GET", target("/poll", ["a"], **again, wait="20"), token=token)
    assert [each["event"]["n"] for each in second.json["events"]] == [10, 11]
    for wanted, expected in ((BIG, [10, 11]), ({"/n": {"lt": 5}}, [1])):
        body = poller.body(20) | {"filter": wanted}
        found = poller.take(await ask(url, "POST", "/poll", token=token, json=body))
        assert [each["event"]["n"] for each in found["events"]] == expected
        await store(publisher, 1, 12)
        await broker.caught_up()
    assert int((poller.position or "").rpartition("-")[2]) > last
