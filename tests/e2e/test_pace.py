"""`subscribe` with `every_ms`: of each channel the newest event, at its pace, wherever it is read from."""

from __future__ import annotations

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

LONG = 60_000  # longer than a test


async def store(publisher: RawNats, *numbers: int, channel: str = "a") -> int:
    sequence = 0
    for number in numbers:
        sequence = await publisher.store(f"events.acme.{channel}", b"%d" % number)
    return sequence


async def test_live(broker: Broker, publisher: RawNats) -> None:
    """The first at once, marked, and in the end the newest; P goes on meanwhile."""
    async with broker.client() as client, broker.client() as slow, broker.client() as late:
        await client.subscribe(["*", "live.a"], every_ms=150)
        await slow.subscribe("*", every_ms=LONG)
        await store(publisher, 0, channel="b")
        await store(publisher, 1)
        for each in (client, slow):
            found = await each.events(2)
            assert [(event["event"], event["paced"]) for event in found] == [(0, True), (1, True)]
        last = await store(publisher, 2, 3, 4)
        await slow.passed(last)
        await late.subscribe("*", every_ms=LONG)
        last = await store(publisher, 5)
        assert [each["event"] for each in await late.events(1)] == [5], "its first at once"
        found = await client.events(1)
        while found[-1]["event"] < 5:
            found += await client.events(1)
        numbers = [each["event"] for each in found]
        assert numbers == sorted(set(numbers) & {2, 3, 4, 5})
        await slow.passed(last)
        await slow.quiet()
        for number in (6, 7):
            await publisher.publish("live.acme.a", b"%d" % number)
        while "position" in (event := await client.until("event")) or event["event"] != 7:
            assert event["paced"]


async def test_starts(broker: Broker, publisher: RawNats) -> None:
    """A resume begins with the newest of each channel; catch-ups, `last` and snapshots have that alone."""
    async with broker.client() as client:
        await client.subscribe("*", every_ms=LONG)
        await store(publisher, 1)
        assert [each["event"] for each in await client.events(1)] == [1]
        await store(publisher, 2)
        last = await store(publisher, 3, channel="b")
        assert [each["event"] for each in await client.events(1)] == [3]
        await client.passed(last)
        position = await client.position()
    await store(publisher, 4, 5, channel="c")
    await broker.caught_up()
    for start, expected in (
        ({"position": position}, [2, 3, 5]),
        ({"since": "2020-01-01T00:00:00Z"}, [2, 3, 5]),
        ({"last": 3}, [3, 5]),
        ({"snapshot": True}, [2, 3, 5]),
    ):
        async with broker.client() as client:
            answer = await client.subscribe("*", every_ms=LONG, **start)
            assert (answer["recovered"], answer["live"]) == (True, False)
            found = await client.events(len(expected))
            assert ([each["event"] for each in found], start) == (expected, start)
            assert all(each["paced"] for each in found)
            await client.until("subscription.live")
            await client.quiet()
    async with broker.client() as client:
        await client.subscribe("other")
        await client.subscribe("*", every_ms=LONG, position=position)
        found = await client.events(3)
        assert [(each["event"], each["catch_up"]) for each in found] == [(2, 1), (3, 1), (5, 1)]
        await client.until("subscription.live")


async def test_from_the_stream(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """What no broker has in memory: also what was stored before the position."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 10})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe("none")
        await store(publisher, 1, 2, channel="a")
        last = await store(publisher, 3, channel="b")
        await client.passed(last)
        position = await client.position()
        await store(publisher, *range(4, 60), channel="c")
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe("*", every_ms=LONG, position=position)
        assert [each["event"] for each in await client.events(3)] == [2, 3, 59]
        await client.until("subscription.live")


async def test_the_union(broker: Broker, publisher: RawNats) -> None:
    """With a subscription that has none, on one connection: all of that one, in order, once."""
    async with broker.client() as client:
        await client.subscribe("*", every_ms=LONG)
        await client.subscribe("b")
        await store(publisher, 0, channel="a")
        assert [(each["event"], each["paced"]) for each in await client.events(1)] == [(0, True)]
        for number in range(1, 5):
            await store(publisher, number, channel="a")
            await store(publisher, 10 + number, channel="b")
        found = await client.events(4)
        assert [(each["event"], "paced" in each) for each in found] == [
            (each, False) for each in range(11, 15)
        ]
        await client.subscribe("*")
        await store(publisher, 5, 6)
        assert [each["event"] for each in await client.events(2)] == [5, 6]
        paced = [each["payload"] for each in client.log if "paced" in each["payload"]]
        assert [each["event"] for each in paced] == [0, 4], "what was held came before"
        await client.quiet()


@pytest.mark.parametrize(
    ("every", "named"),
    [
        (99, "payload.every_ms: must be 100 to 60000"),
        (60_001, "payload.every_ms: must be 100 to 60000"),
        (-100, "payload.every_ms: must be 100 to 60000"),
        (0, "payload.every_ms: must be 100 to 60000"),
        (10**30, "payload.every_ms"),
        (100.0, "payload.every_ms: must be a whole number"),
        (150.5, "payload.every_ms: must be a whole number"),
        ("100", "payload.every_ms: must be a whole number"),
        (True, "payload.every_ms: must be a whole number"),
        ([100], "payload.every_ms: must be a whole number"),
    ],
    ids=str,
)
async def test_bad_paces(broker: Broker, every: Any, named: str) -> None:
    """The error names what and where, and nothing has changed; over HTTP it says the same."""
    async with broker.client() as client:
        await client.send("subscribe", {"channel": "a", "every_ms": every}, messageId="1")
        refused = await client.until("error")
        assert refused["code"] == "bad_message"
        assert named in refused["message"]
        await client.subscribe("a")
    body = {"channels": ["a"], "every_ms": every}
    answer = await ask(broker.running.http, "POST", "/poll", token=broker.token(), json=body)
    assert answer.status == 400
    assert "every_ms" in answer.problem["detail"]


async def test_without_websocket(broker: Broker, publisher: RawNats) -> None:
    """SSE and polls take it in the query, polls in the body too. An event that is paced has no `id:`."""
    url, token = broker.running.http, broker.token()
    for bad in ("99", "60001", "1.5", "soon", "true", "-1", ""):
        for path in ("/sse", "/poll"):
            answer = await ask(url, "GET", target(path, ["a"], every_ms=bad), token=token)
            assert answer.status == 400, (path, bad)
            assert "every_ms" in answer.problem["detail"], (path, bad)
    poller = Poller(url, token, ["a"], {"every_ms": LONG})
    await poller.poll()
    first = await ask(url, "GET", target("/poll", ["a"], every_ms=str(LONG)), token=token)
    async with listen(url, "a", token=token, every_ms=str(LONG)) as stream:
        await stream.until("subscribed")
        await store(publisher, 1)
        [event] = await stream.events(1)
        assert (event["event"], event["paced"]) == (1, True)
        last = await store(publisher, 2)
    await broker.caught_up()
    again = {"session": first.json["session"], "position": first.json["position"], "every_ms": str(LONG)}
    second = await ask(url, "GET", target("/poll", ["a"], **again, wait="20"), token=token)
    assert [each["event"] for each in second.json["events"]][-1:] in ([1], [2])  # due while nobody polled
    found = poller.take(
        await ask(url, "POST", "/poll", token=token, json=poller.body(20) | {"every_ms": 100})
    )
    assert found["events"][-1]["event"] == 2
    assert int((poller.position or "").rpartition("-")[2]) >= last


async def test_an_answer_that_was_lost(broker: Broker, publisher: RawNats) -> None:
    """What was in it comes again."""
    url, token = broker.running.http, broker.token()
    poller = Poller(url, token, ["a"], {"every_ms": LONG})
    await poller.poll()
    before = poller.body(20) | {"every_ms": LONG}
    await store(publisher, 1)
    await broker.caught_up()
    for _ in range(2):
        answer = await ask(url, "POST", "/poll", token=token, json=before)
        assert [(each["event"], each["paced"]) for each in answer.json["events"]] == [(1, True)]
