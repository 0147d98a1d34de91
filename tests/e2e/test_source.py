"""NATS goes away and comes back: what clients are told, what is refused, and that nothing is lost."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.auth.tokens import sign
from tests.faults.support.proxy import Proxy, run_proxy
from tests.support import rawnats
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask
from tests.support.websocket import Client, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer

SECONDS = 45


async def ready(broker: Broker) -> int:
    return (await ask(broker.running.http, "/readyz")).status


async def until_ready(broker: Broker) -> None:
    with trio.fail_after(SECONDS):
        while await ready(broker) != 200:
            pass


async def store(nats: NatsServer, first: int, last: int, *, channel: str = "a") -> None:
    async with rawnats.connect(nats.url) as publisher:
        for number in range(first, last + 1):
            await publisher.store(f"events.acme.{channel}", str(number).encode())


async def publish_live(nats: NatsServer, event: int) -> None:
    async with rawnats.connect(nats.url) as publisher:
        await publisher.publish("live.acme.a", str(event).encode())
        await publisher.flush()


def told(client: Client, kind: str) -> list[dict[str, Any]]:
    return [message["payload"] for message in client.log if message["type"] == kind]


async def test_outage(broker: Broker, nats: NatsServer) -> None:
    """Clients stay and are told; after it stored channels go on without loss, live ones with a gap."""
    async with broker.client() as stored, broker.client(user="bob") as live, broker.client("idle") as idle:
        await stored.subscribe(["a", "b.>"])
        await live.subscribe(["a", "live.a", "live.b"])
        await store(nats, 1, 5)
        for client in (stored, live):
            assert [event["event"] for event in await client.events(5)] == [1, 2, 3, 4, 5]
        assert await ready(broker) == 200

        await nats.kill9()
        for client in (stored, live, idle):
            assert await client.expect("source") == {"state": "interrupted"}
            await client.quiet()
        answer = await ask(broker.running.http, "/readyz")
        assert answer.status == 503
        assert answer.problem["detail"].startswith("NATS is out of reach: ")
        assert (await ask(broker.running.http, "/healthz")).status == 200
        assert b"broker_ready 0.0" in (await ask(broker.running.admin, "/metrics")).body

        await nats.start()
        for client in (stored, idle):
            assert await client.expect("source") == {"state": "restored"}
        assert await live.expect("source") == {"state": "restored"}
        assert await live.expect("gap") == {"channel": ["live.a", "live.b"], "reason": "source"}
        await store(nats, 6, 9)
        await publish_live(nats, 10)
        assert [event["event"] for event in await stored.events(4)] == [6, 7, 8, 9]
        assert {event["event"] for event in await live.events(5)} == {6, 7, 8, 9, 10}
        assert not told(stored, "gap")
        for client in (stored, live, idle):
            await client.quiet()
        await until_ready(broker)


async def test_requests_during_an_outage(tmp_path: Path, nats: NatsServer) -> None:
    """What needs NATS is `unavailable` with a time to wait, never swallowed; what does not still works."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 1})
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as client,
        broker.client(user="other") as other,
    ):
        await store(nats, 1, 3, channel="b")
        await broker.caught_up()
        await other.subscribe("live.b")
        position = (await client.subscribe("a"))["position"]
        await nats.kill9()
        await client.expect("source")
        for kind, payload in (
            ("publish", {"channel": "a", "event": 1}),
            ("publish", {"channel": "a", "event": 1, "id": "n"}),
            ("publish", {"channel": "live.a", "event": 1}),
            ("subscribe", {"channel": "b", "last": 10}),
            ("subscribe", {"channel": "b", "snapshot": True}),
            ("subscribe", {"channel": "b", "since": "2026-01-01T00:00:00Z"}),
            ("subscribe", {"channel": "b", "position": "other-5"}),
            ("subscribe", {"channel": "live.b"}),
        ):
            await client.send(kind, payload, messageId=kind)
            refusal = await client.expect("error")
            assert (refusal["code"], refusal["retryable"]) == ("unavailable", True), (kind, payload)
            assert refusal["retry_after_ms"] > 0, (kind, payload)
            assert client.log[-1]["messageId"] == kind
        assert (await client.subscribe("c"))["live"]
        await client.send("unsubscribe", {"channel": "c"})
        await client.expect("unsubscribed")
        await client.send("authenticate", {"token": broker.token()})
        await client.expect("connection.authenticated")
        async with broker.client(user="late") as late:
            assert (await late.subscribe("a", position=position))["recovered"]
            await nats.start()
            for each in (client, late):
                assert await each.until("source") == {"state": "restored"}
            await client.send("publish", {"channel": "a", "event": 2, "id": "n"})
            published, event = await client.all_of("published", "event")
            assert "duplicate" not in published
            assert event["event"] == 2
            assert (await late.until("event"))["event"] == 2
            assert (await client.subscribe("live.b"))["live"]
            await publish_live(nats, 3)


async def test_refused_publish_leaves_nothing_behind(broker: Broker, nats: NatsServer) -> None:
    """An event that was refused during the outage does not turn up after it."""
    async with broker.client() as client:
        await client.subscribe("a")
        await nats.kill9()
        await client.expect("source")
        await client.send("publish", {"channel": "a", "event": "refused"})
        assert (await client.expect("error"))["code"] == "unavailable"
        await nats.start()
        await client.expect("source")
        await store(nats, 1, 1)
        assert (await client.expect("event"))["event"] == 1
        await client.quiet()


async def test_many_outages_under_load(broker: Broker, nats: NatsServer) -> None:
    """Each event that the stream acknowledged comes once, in order, over five kills at any moment."""
    total = 400
    acknowledged: list[int] = []

    async def publish() -> None:
        number = 0
        while len(acknowledged) < total:
            try:
                async with rawnats.connect(nats.url) as publisher:
                    while len(acknowledged) < total:
                        number += 1  # never a second time: it may have been stored without an answer
                        await publisher.store("events.acme.a", str(number).encode())
                        acknowledged.append(number)
            except* (OSError, trio.EndOfChannel, trio.BrokenResourceError, ValueError):
                await trio.lowlevel.checkpoint()

    async def kill() -> None:
        for step in range(1, 6):
            with trio.fail_after(60):
                while len(acknowledged) < step * total // 8:
                    await trio.sleep(0.001)
            await nats.restart()

    async with broker.client() as client, broker.client(user="bob") as bob:
        for each in (client, bob):
            await each.subscribe("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(kill)
        await until_ready(broker)
        await store(nats, 10**6, 10**6)
        for each in (client, bob):
            seen = [(await each.until("event"))["event"]]
            while seen[-1] != 10**6:
                seen.append((await each.until("event"))["event"])
            assert seen == sorted(set(seen))
            assert set(acknowledged) <= set(seen)
            assert not told(each, "gap")


async def test_clients_that_are_behind_go_on_after_an_outage(tmp_path: Path, nats: NatsServer) -> None:
    """A replay that was reading the stream when NATS went away goes on where it was."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 1})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            position = (await client.subscribe("a"))["position"]
        async with rawnats.connect(nats.url) as publisher:
            body = '"' + "x" * 5000
            for number in range(3000):
                await publisher.publish("events.acme.a", f'{body}{number}"'.encode())
            await publisher.flush()
            await publisher.store("events.acme.a", b'"end"')
        await broker.caught_up()
        async with broker.client() as client:
            await client.subscribe("a", position=position)
            seen = [event["event"].strip("x") for event in await client.events(5)]
            await nats.restart()
            while seen[-1] != "end":
                seen.append((await client.until("event"))["event"].strip("x"))
            assert seen == [*map(str, range(3000)), "end"]
            assert told(client, "source")
            assert not told(client, "gap")
            await client.until("subscription.live")


async def test_live_subscription_made_while_nats_returns(broker: Broker, nats: NatsServer) -> None:
    """Retried until it is accepted, a live subscription gets what is published from then on."""
    for _ in range(3):
        async with broker.client() as client:
            await nats.kill9()
            await client.expect("source")
            await nats.start()
            while True:
                await client.send("subscribe", {"channel": "live.a"})
                message = await client.receive()
                while message["type"] not in ("subscribed", "error"):
                    message = await client.receive()
                if message["type"] == "subscribed":
                    break
                assert message["payload"]["code"] in ("unavailable", "rate_limited")
                await trio.sleep(0.05)  # as a client would, only faster
            await publish_live(nats, 7)
            assert (await client.until("event"))["event"] == 7


async def test_broker_started_without_nats(tmp_path: Path, nats: NatsServer, held: list[int]) -> None:
    """It takes clients in and tells them to wait; it is ready when NATS comes, and they are served."""
    [port] = held
    address = f"127.0.0.1:{port}"
    url = f"ws://{address}/ws"
    settings = configure(tmp_path / "b", nats.url, server={"listen": address})
    served = trio.Event()

    async def run() -> None:
        async with run_broker(tmp_path / "b", settings):
            await served.wait()

    await nats.kill9()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until_open(address)
        token = sign(settings.auth, tenant="acme", user="alice", now=time.time(), ttl=600)
        async with connect(url, token=token) as client:
            for kind, payload in (
                ("subscribe", {"channel": "a"}),
                ("subscribe", {"channel": "live.a"}),
                ("publish", {"channel": "a", "event": 1}),
            ):
                await client.send(kind, payload)
                refusal = await client.expect("error")
                assert refusal["code"] == "unavailable"
                assert refusal["retry_after_ms"] > 0
            await client.send("ping")
            assert await client.expect("pong") == {}
            assert (await ask(url, "/readyz")).status == 503
            assert (await ask(url, "/healthz")).status == 200
            await nats.start()
            with trio.fail_after(SECONDS):
                while (await ask(url, "/readyz")).status != 200:
                    pass
            assert (await client.subscribe(["a", "live.a"]))["live"]
            await store(nats, 1, 1)
            assert (await client.expect("event"))["event"] == 1
            await publish_live(nats, 2)
            assert (await client.expect("event"))["event"] == 2
            served.set()


async def until_open(address: str) -> None:
    with trio.fail_after(SECONDS):
        while True:
            try:
                stream = await trio.open_tcp_stream(address.split(":")[0], int(address.split(":")[1]))
            except OSError:
                await trio.lowlevel.checkpoint()
            else:
                return await stream.aclose()


# --- only the broker is cut off --------------------------------------------------------------------


@asynccontextmanager
async def behind_a_proxy(
    directory: Path, nats: NatsServer, **ring: Any
) -> AsyncIterator[tuple[Broker, Proxy]]:
    async with run_proxy(lambda: nats.port) as proxy:
        settings = configure(directory, f"nats://127.0.0.1:{proxy.port}", ring=ring)
        async with run_broker(directory, settings) as broker:
            yield broker, proxy


async def cut_off(proxy: Proxy, *clients: Client) -> None:
    proxy.down = True
    proxy.reset()
    for client in clients:
        assert await client.expect("source") == {"state": "interrupted"}


@pytest.mark.parametrize("events", [8192, 1], ids=["within the ring", "beyond the ring"])
async def test_what_was_published_meanwhile_follows(tmp_path: Path, nats: NatsServer, events: int) -> None:
    """Services that still reach NATS go on publishing: clients get all of it afterwards, from the stream."""
    async with (
        behind_a_proxy(tmp_path / "b", nats, events=events) as (broker, proxy),
        broker.client() as client,
    ):
        await client.subscribe("a")
        await store(nats, 1, 3)
        await client.events(3)
        await cut_off(proxy, client)
        await store(nats, 4, 500)
        proxy.heal()
        assert await client.expect("source") == {"state": "restored"}
        assert [event["event"] for event in await client.events(497)] == list(range(4, 501))
        await client.quiet()


async def test_what_was_cut_off_meanwhile_is_announced(tmp_path: Path, nats: NatsServer) -> None:
    """Events that came and went while nobody could read them: each stored subscription gets a `gap`."""
    async with (
        behind_a_proxy(tmp_path / "b", nats) as (broker, proxy),
        broker.client() as client,
        broker.client(user="bob") as catching_up,
        rawnats.connect(nats.url) as publisher,
    ):
        await client.subscribe(["a", "live.a"])
        await catching_up.subscribe("z")
        await store(nats, 1, 3)
        position = (await client.events(3))[-1]["position"]
        await cut_off(proxy, client, catching_up)
        await store(nats, 4, 20)
        last = (await publisher.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
        await publisher.api("STREAM.PURGE.EVENTS", seq=last - 4)
        proxy.heal()
        assert await client.expect("source") == {"state": "restored"}
        events = await client.events(5)
        assert [event["event"] for event in events] == [16, 17, 18, 19, 20]
        gaps = told(client, "gap")
        assert {"channel": "live.a", "reason": "source"} in gaps
        (trimmed,) = [gap for gap in gaps if gap["reason"] != "source"]
        assert (trimmed["reason"], trimmed["channel"], trimmed["from"]) == ("trimmed", "a", position)
        assert trimmed["to"].endswith(f"-{last - 5}")
        await catching_up.passed(last)  # a start at its own position would be none in the past
        answer = await catching_up.subscribe("a", position=position)
        assert not answer["recovered"]
        assert [event["event"] for event in await catching_up.events(5)] == [16, 17, 18, 19, 20]


async def test_stream_recreated_meanwhile(tmp_path: Path, nats: NatsServer) -> None:
    """Another stream of the same name is another incarnation: `reset`, then what it holds."""
    async with (
        behind_a_proxy(tmp_path / "b", nats) as (broker, proxy),
        broker.client() as client,
        rawnats.connect(nats.url) as publisher,
    ):
        await client.subscribe("a")
        await store(nats, 1, 3)
        old = (await client.events(3))[-1]["position"].split("-")[0]
        await cut_off(proxy, client)
        info = await publisher.api("STREAM.INFO.EVENTS")
        await publisher.api("STREAM.DELETE.EVENTS")
        await publisher.api("STREAM.CREATE.EVENTS", **info["config"])
        await store(nats, 4, 50)
        proxy.heal()
        gap = await client.until("gap")
        assert gap["reason"] == "reset"
        assert gap["to"].split("-")[0] != old
        assert [event["event"] for event in await client.events(47)] == list(range(4, 51))
        await client.quiet()
