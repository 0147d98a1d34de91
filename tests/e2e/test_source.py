"""NATS goes away and comes back: what clients are told, what is refused, and that nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support import rawnats
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask
from tests.support.websocket import Client, connect

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer

SECONDS = 20


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
        assert answer.problem["detail"] == "NATS is out of reach"
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


async def test_requests_during_an_outage(broker: Broker, nats: NatsServer) -> None:
    """What needs NATS is `unavailable` with a time to wait, never swallowed; what does not still works."""
    async with broker.client() as client:
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
            published = await client.until("published")
            assert "duplicate" not in published
            assert (await client.until("event"))["event"] == 2
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
        while number < total:
            try:
                async with rawnats.connect(nats.url) as publisher:
                    while number < total:
                        with trio.fail_after(5):
                            await publisher.store("events.acme.a", str(number).encode())
                        acknowledged.append(number)
                        number += 1
            except* (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
                number += 1  # it may have been stored all the same

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
        await store(nats, total, total)
        for each in (client, bob):
            seen = [(await each.until("event"))["event"]]
            while seen[-1] != total:
                seen.append((await each.until("event"))["event"])
            assert seen == sorted(set(seen))
            assert set(acknowledged) <= set(seen)
            assert not told(each, "gap")


async def test_clients_that_are_behind_go_on_after_an_outage(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
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


async def test_broker_started_without_nats(tmp_path: Path, nats: NatsServer) -> None:
    """It waits, takes clients in meanwhile, and is ready when NATS comes."""
    settings = configure(tmp_path / "b", nats.url, server={"listen": "127.0.0.1:0"})
    await nats.kill9()
    async with trio.open_nursery() as nursery:
        started = trio.Event()

        async def run() -> None:
            async with run_broker(tmp_path / "b", settings) as broker:
                async with broker.client() as client:
                    await client.subscribe(["a", "live.a"])
                    await store(nats, 1, 1)
                    assert (await client.expect("event"))["event"] == 1
                assert await ready(broker) == 200
                started.set()

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert not started.is_set()
        await nats.start()
        with trio.fail_after(SECONDS):
            await started.wait()


async def test_clients_that_came_before_nats(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
    """Whoever connects while NATS was never reached is authenticated, and subscribes when it is there."""
    settings = configure(tmp_path / "b", nats.url, server={"listen": f"127.0.0.1:{unused_port()}"})
    url = f"ws://{settings.server.listen}/ws"
    await nats.kill9()
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def run() -> None:
            async with run_broker(tmp_path / "b", settings):
                await done.wait()

        nursery.start_soon(run)
        token = Broker(config=settings, running=None, stop=None).token()  # type: ignore[arg-type]
        client_scope = connect(url, token=token)
        with trio.fail_after(SECONDS):
            while True:
                try:
                    await (await trio.open_tcp_stream(*settings.server.listen.split(":"))).aclose()  # type: ignore[arg-type]
                except OSError:
                    await trio.sleep(0.01)
                else:
                    break
        async with client_scope as client:
            await client.send("subscribe", {"channel": "a"})
            refusal = await client.expect("error")
            assert refusal["code"] == "unavailable"
            assert refusal["retry_after_ms"] > 0
            await client.send("publish", {"channel": "a", "event": 1})
            assert (await client.expect("error"))["code"] == "unavailable"
            await client.send("ping")
            assert await client.expect("pong") == {}
            answer = await ask(url, "/readyz")
            assert answer.status == 503
            await nats.start()
            with trio.fail_after(SECONDS):
                while (await ask(url, "/readyz")).status != 200:
                    pass
            assert (await client.subscribe("a"))["live"]
            await store(nats, 1, 1)
            assert (await client.expect("event"))["event"] == 1
            done.set()


def unused_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("held", [True, False], ids=["in the ring", "beyond the ring"])
async def test_events_published_while_only_the_broker_is_cut_off(
    tmp_path: Path, nats: NatsServer, held: bool
) -> None:
    """What services publish while the broker is away from NATS comes after it, from the stream."""
    settings = configure(tmp_path / "b", nats.url, ring={} if held else {"events": 1})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe("a")
        await store(nats, 1, 3)
        await client.events(3)
        async with rawnats.connect(nats.url) as publisher:
            await cut_off(publisher)
            for number in range(4, 500):
                await publisher.publish("events.acme.a", str(number).encode())
            await publisher.store("events.acme.a", b"500")
        assert await client.expect("source") == {"state": "interrupted"}
        assert await client.until("source") == {"state": "restored"}
        assert [event["event"] for event in await client.events(497)] == list(range(4, 501))
        assert not told(client, "gap")
