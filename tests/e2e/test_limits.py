"""What a client cannot have too much of, and what of its input never gets any further."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import trio

from tests.support.broker import Broker, configure, run_broker
from tests.support.metrics import scraped
from tests.support.raw import ask, open_raw
from tests.web.harness import BINARY, CLOSE, TEXT, frame, head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client


async def error(client: Client) -> dict[str, Any]:
    return await client.expect("error")


async def works(broker: Broker, publisher: RawNats) -> None:
    """Another client is served."""
    async with broker.client(user="witness") as witness:
        await witness.subscribe("witness")
        await publisher.store("events.acme.witness", b"1")
        assert (await witness.expect("event"))["event"] == 1


# --- connections -----------------------------------------------------------------------------------


async def test_connections_per_user(tmp_path: Path, nats: NatsServer) -> None:
    """The new connection is the one refused, with 4010; it counts per tenant, and a place freed is free."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections_per_user": 2})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as first, AsyncExitStack() as stack:
            await stack.enter_async_context(broker.client())
            for _ in range(3):
                async with broker.stranger() as third:
                    await third.expect("connection.established")
                    await third.send("authenticate", {"token": broker.token()}, messageId="a")
                    refusal = await error(third)
                    assert (refusal["code"], refusal["retryable"]) == ("limit_connections", True)
                    assert refusal["retry_after_ms"] > 0
                    assert third.log[-1]["messageId"] == "a"
                    assert await third.closed() == 4010
            async with broker.client("globex"), broker.client(user="bob"):
                await first.quiet()
        async with broker.client(), broker.client() as second:
            await second.quiet()


async def test_connections_of_the_process(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Above `connections` the upgrade is refused with 503 and Retry-After, whoever asks."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections": 3})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as first, broker.stranger(), broker.client("globex"):
            answer = await ask(broker.running.ws, "/ws")
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "connections" in answer.problem["detail"]
            assert (await ask(broker.running.ws, "/healthz")).status == 200
            await first.quiet()
        await until_free(broker)
        await works(broker, publisher)


async def until_free(broker: Broker) -> None:
    """Waits until the broker has noticed that a client is gone."""
    await scraped(broker.running.admin, lambda found: found.total("broker_connections") == 0)


async def test_a_crowd_does_not_pass_the_limit(tmp_path: Path, nats: NatsServer) -> None:
    """Of many that come at the same moment no more are let in than there are places."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections": 5})
    statuses: list[bytes] = []
    async with run_broker(tmp_path / "b", settings) as broker, AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(open_raw(broker.running.ws)) for _ in range(40)]
        async with trio.open_nursery() as nursery:
            for client in crowd:
                nursery.start_soon(client.send, head())
        for client in crowd:
            with trio.fail_after(45):
                statuses.append(bytes(await client.stream.receive_some())[:12])
    assert statuses.count(b"HTTP/1.1 101") == 5
    assert statuses.count(b"HTTP/1.1 503") == 35


# --- subscriptions ---------------------------------------------------------------------------------


async def test_subscriptions_per_connection(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """What goes beyond is refused by name, what fits stands; subscribing the same again is no further one."""
    settings = configure(tmp_path / "b", nats.url, limits={"subscriptions_per_connection": 3})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe(["a", "b"])
        answer = await client.subscribe(["c", "d", "a"])
        assert answer["channel"] == ["c", "a"]
        assert [(each["channel"], each["code"]) for each in answer["refused"]] == [
            ("d", "limit_subscriptions")
        ]
        await client.send("subscribe", {"channel": "e"})
        assert (await error(client))["code"] == "limit_subscriptions"
        assert (await client.subscribe("b"))["live"]
        await client.send("unsubscribe", {"channel": ["a", "b"]})
        await client.expect("unsubscribed")
        assert (await client.subscribe(["d", "e"]))["channel"] == ["d", "e"]
        for channel in "abcde":
            await publisher.store(f"events.acme.{channel}", b"1")
        assert [event["channel"] for event in await client.events(3)] == ["c", "d", "e"]
        await works(broker, publisher)


async def test_ten_thousand_subscriptions(broker: Broker, publisher: RawNats) -> None:
    """However many are asked for, the answer stays small and the limit holds."""
    async with broker.client() as client:
        await client.send("subscribe", {"channel": [f"c{number}" for number in range(6000)]})
        refusal = await error(client)
        assert refusal["code"] == "limit_subscriptions"
        await client.subscribe([f"c{number}" for number in range(128)])
        answered = 0
        for number in range(0, 2000, 100):
            await client.send("subscribe", {"channel": [f"d{number + i}" for i in range(100)]})
            answered += (await error(client))["code"] == "limit_subscriptions"
        assert answered == 20
        await publisher.store("events.acme.c127", b"1")
        assert (await client.expect("event"))["channel"] == "c127"
        await works(broker, publisher)


async def test_subscribing_and_unsubscribing_a_thousand_times(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """It leaves nothing behind: the last state counts, each event comes once."""
    limits = {"requests_burst": 10**6}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:

        async def ask_all() -> None:
            for number in range(1000):
                await client.send("subscribe", {"channel": ["a", "live.a", ">"]})
                await client.send("unsubscribe", {"channel": ["a", "live.a", ">"]})
                if not number % 100:
                    await publisher.store("events.acme.a", b"0")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_all)
            for _ in range(1000):
                await client.until("subscribed")
                await client.until("unsubscribed")
        await client.quiet()
        await client.subscribe(["a", "live.a"])
        await publisher.store("events.acme.a", b"1")
        await publisher.publish("live.acme.a", b"2")
        await publisher.flush()
        assert {event["event"] for event in await client.events(2)} == {1, 2}
        await client.quiet()
        await works(broker, publisher)


# --- rates -----------------------------------------------------------------------------------------


async def test_publish_rate_is_the_users(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """All connections of a user share it; above it `rate_limited` says when to try again; others go on."""
    limits = {"messages_burst": 5, "messages_per_minute": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as one,
        broker.client() as two,
        broker.client(user="bob") as bob,
    ):
        for client in (one, one, one, two, two):
            await client.send("publish", {"channel": "a", "event": 1})
            await client.expect("published")
        for client in (one, two):
            await client.send("publish", {"channel": "a", "event": 1}, messageId="m")
            refusal = await error(client)
            assert (refusal["code"], refusal["retryable"]) == ("rate_limited", True)
            assert 0 < refusal["retry_after_ms"] <= 60000
            assert client.log[-1]["messageId"] == "m"
            assert (await client.subscribe("b"))["live"]
        await bob.send("publish", {"channel": "a", "event": 1})
        await bob.expect("published")
        info = await publisher.api("STREAM.INFO.EVENTS", subjects_filter="events.acme.>")
        assert info["state"]["subjects"] == {"events.acme.a": 6}
        await works(broker, publisher)


async def test_failed_messages_count_against_the_rate(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """Whoever uses up the rate with what is refused has none left to publish."""
    limits = {"messages_burst": 5, "messages_per_minute": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        for _ in range(5):
            await client.send("subscribe", {"channel": "users.bob.>"})
            assert (await error(client))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": 1})
        assert (await error(client))["code"] == "rate_limited"
        await works(broker, publisher)


async def test_request_rate(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Above it `rate_limited`, and 4029 for whoever does not stop."""
    limits = {"requests_burst": 5, "requests_per_second": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            for _ in range(100):
                await client.send("ping")
            assert await client.closed() == 4029
            kinds = [message["type"] for message in client.log[2:]]
            assert kinds[:5] == ["pong"] * 5
            refusals = [message["payload"] for message in client.log if message["type"] == "error"]
            assert {refusal["code"] for refusal in refusals} == {"rate_limited"}
            assert all(0 < refusal["retry_after_ms"] <= 1000 for refusal in refusals)
        await works(broker, publisher)


async def test_strangers_have_a_rate_too(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Without a token nobody can try tokens, or anything else, faster than that."""
    limits = {"requests_burst": 5, "requests_per_second": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.stranger() as client:
            for _ in range(100):
                await client.send("subscribe", {"channel": "a"})
            assert await client.closed() == 4029
        await works(broker, publisher)


# --- sizes -----------------------------------------------------------------------------------------


async def test_message_bytes(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A message of just the limit is read; one byte more is 1009."""
    settings = configure(tmp_path / "b", nats.url, limits={"message_bytes": 1000})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            text = json.dumps({"type": "ping"})
            await client.socket.send_message(text + " " * (1000 - len(text)))
            await client.expect("pong")
            await client.socket.send_message(text + " " * (1001 - len(text)))
            assert await client.closed() == 1009
        await works(broker, publisher)


async def test_publish_bytes(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """An event of just the limit is published; one byte more is `too_large`, stored or live."""
    settings = configure(tmp_path / "b", nats.url, limits={"publish_bytes": 100})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe(["a", "live.a"])
        for channel in ("a", "live.a"):
            await client.send("publish", {"channel": channel, "event": "x" * 99})
            assert (await error(client))["code"] == "too_large"
            await client.send("publish", {"channel": channel, "event": "ä" * 50})
            assert (await error(client))["code"] == "too_large"
            await client.send("publish", {"channel": channel, "event": "ä" * 49})
            got = {(await client.receive())["type"] for _ in range(2)}
            assert got == {"published", "event"}
        await works(broker, publisher)


async def test_other_frames_than_text(broker: Broker, publisher: RawNats) -> None:
    """Binary is 1003, invalid UTF-8 is 1007; a Close is answered with its code."""
    for sent, code in (
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(CLOSE, b"\x0f\xa0"), 4000),
        (frame(CLOSE, b"\x03\xe8"), 1000),
    ):
        async with open_raw(broker.running.ws) as client:
            await client.upgrade()
            await client.send(sent)
            assert (await client.closed())[0] == code
    await works(broker, publisher)
