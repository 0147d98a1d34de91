"""The broker stops: clients are asked to go, one after the other, and nothing that was begun is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker import app, config
from broker.bus.nats import NatsBus
from broker.errors import CloseCode
from broker.features.state import owners
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask, hear, open_raw, say
from tests.web.harness import eventually, head

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.bus.base import PublishAck
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


async def test_clients_are_asked_to_come_back(broker: Broker, publisher: RawNats) -> None:
    """`connection.draining` with delay and resume position, then 1012."""
    async with broker.client() as client, broker.stranger() as stranger:
        await stranger.expect("connection.established")
        await client.subscribe("a")
        await publisher.store("events.acme.a", b"1")
        position = (await client.expect("event"))["position"]
        broker.stop.wanted.set()
        draining = await client.expect("connection.draining")
        assert draining["reconnect_after_ms"] >= 0
        assert draining["position"] == position
        assert await client.closed() == 1012
        assert "position" not in await stranger.expect("connection.draining")
        assert await stranger.closed() == 1012


async def test_stop_for_good_is_1001(broker: Broker) -> None:
    """Whoever ends the broker by hand does not restart it: clients are told that it is going away."""
    async with broker.client() as client:
        broker.stop.code = CloseCode.GOING_AWAY
        broker.stop.wanted.set()
        await client.expect("connection.draining")
        assert await client.closed() == 1001


async def test_between_draining_and_the_close(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Events and publishes go on until the close; a subscribe is `unavailable`; delays are spread."""
    drain = {"reconnects_per_second": 0.2, "grace_seconds": 15.0}  # the second one has 5 s left
    settings = configure(tmp_path / "b", nats.url, drain=drain)
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as one,
        broker.client(user="bob") as two,
    ):
        for client in (one, two):
            await client.subscribe("a")
        assert (await ask(broker.running.http, "/readyz")).status == 200
        broker.stop.wanted.set()
        delays = {
            client: (await client.expect("connection.draining"))["reconnect_after_ms"]
            for client in (one, two)
        }
        first, last = sorted((one, two), key=lambda client: delays[client])
        assert delays[first] == 0
        assert delays[last] > 0
        assert await first.closed() == 1012
        await last.send("subscribe", {"channel": "b"}, messageId="s")
        assert (await last.expect("error"))["code"] == "unavailable"
        assert last.log[-1]["messageId"] == "s"
        await publisher.store("events.acme.a", b"1")
        assert (await last.expect("event"))["event"] == 1
        await last.send("publish", {"channel": "a", "event": 2})
        got = {(await last.receive())["type"] for _ in range(2)}
        assert got == {"published", "event"}
        await last.send("authenticate", {"token": broker.token(user="bob" if last is two else "alice")})
        await last.expect("connection.authenticated")
        with pytest.raises(OSError, match="all attempts to connect"):
            await ask(broker.running.ws, "/ws")
        assert await last.closed() == 1012


async def test_what_was_on_its_way_is_answered(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client to go has sent a publish when it is told so: that is taken and answered."""
    monkeypatch.setattr(app, "NOTICE_SECONDS", 6.0)
    settings = configure(tmp_path / "b", nats.url, drain={"grace_seconds": 60.0})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        broker.stop.wanted.set()
        assert (await client.expect("connection.draining"))["reconnect_after_ms"] == 0
        await client.send("publish", {"channel": "a", "event": 1})
        await client.expect("published")


async def test_a_drain_ends_when_everybody_has_left(tmp_path: Path, nats: NatsServer) -> None:
    """Clients that leave as soon as they are asked to need not be waited for until their time comes."""
    slowly = {"grace_seconds": 3600.0, "reconnects_per_second": 0.001}
    settings = configure(tmp_path / "b", nats.url, drain=slowly)
    with trio.fail_after(120):
        async with (
            run_broker(tmp_path / "b", settings) as broker,
            broker.client() as one,
            broker.client(user="bob") as two,
        ):
            broker.stop.wanted.set()
            for client in (one, two):
                await client.expect("connection.draining")


@pytest.mark.parametrize("channel", ["a", "live.a"])
async def test_publish_in_flight_is_acknowledged(
    broker: Broker, publisher: RawNats, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    """A publish that was begun is answered before the close, whichever way it goes."""
    begun, go_on = trio.Event(), trio.Event()
    name = "publish_live" if channel.startswith("live.") else "publish"
    real = getattr(NatsBus, name)

    async def publish(self: NatsBus, subject: str, *args: Any, **options: Any) -> PublishAck:
        if subject.endswith(".acme.a"):
            begun.set()
            await go_on.wait()
        ack: PublishAck = await real(self, subject, *args, **options)
        return ack

    monkeypatch.setattr(NatsBus, name, publish)
    async with broker.client() as client:
        await client.send("publish", {"channel": channel, "event": 1}, messageId="p")
        with trio.fail_after(45):
            await begun.wait()
        broker.stop.wanted.set()
        await client.expect("connection.draining")
        go_on.set()
        await client.expect("published")
        assert client.log[-1]["messageId"] == "p"
        assert await client.closed() == 1012


async def test_what_is_not_answered_in_time(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose change is still with the service of the document when the grace ends is told to go."""
    monkeypatch.setattr(owners, "ANSWER_SECONDS", 600.0)
    documents = (config.Documents(channel="owned", owner="service"),)
    settings = configure(
        tmp_path / "b", nats.url, drain={"grace_seconds": 2.0}, state={"documents": documents}
    )
    asked = await publisher.subscribe("changes.acme.owned")
    async with run_broker(tmp_path / "b", settings) as broker, broker.client(change=["owned"]) as client:
        await publisher.flush()
        with trio.fail_after(60):
            while not (await publisher.api("CONSUMER.NAMES.STATE")).get("consumers"):
                await trio.sleep(0.05)
        change = {"id": "s-1", "channel": "owned", "patch": {"a": 1}, "was": None}
        await client.send("state.change", change)
        with trio.fail_after(45):
            await asked.receive()
        broker.stop.wanted.set()
        await client.expect("connection.draining")
        assert await client.closed() == 1012


async def test_grace_is_an_end(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """A client that takes nothing holds the broker up no longer than its last words may take."""
    settings = configure(tmp_path / "b", nats.url)
    async with run_broker(tmp_path / "b", settings) as broker, open_raw(broker.running.ws) as client:
        await client.upgrade()
        await say(client, "authenticate", {"token": broker.token()})
        await say(client, "subscribe", {"channel": "a"})
        while (await hear(client))["type"] != "subscribed":
            pass
        (connection,) = supervisors[0].connections
        for _ in range(300):
            await publisher.publish("events.acme.a", b'"' + b"x" * 20000 + b'"')
        await publisher.flush()
        await eventually(lambda: connection.flow.rest is not None)
        broker.stop.wanted.set()
        await eventually(lambda: not supervisors[0].connections)


async def test_a_request_that_was_under_way(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
    """Whoever is in the middle of a request as the broker begins to stop is sent elsewhere: 503."""
    settings = configure(
        tmp_path / "b", nats.url, drain={"reconnects_per_second": 0.5, "grace_seconds": 60.0}
    )
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as one:
        async with open_raw(broker.running.ws) as client:
            request = head()
            await client.send(request[:20])
            broker.stop.wanted.set()
            await one.expect("connection.draining")
            await client.send(request[20:])
            answer = await client.answer()
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert await one.closed() == 1012
        await eventually(lambda: not supervisors[0].connections)


async def test_resume_after_a_restart(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """The position in `connection.draining` is all that a client needs to go on at the next broker."""
    settings = configure(tmp_path / "b", nats.url)
    seen: list[int] = []
    position: dict[str, str] = {}
    for number in range(3):
        async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
            await client.subscribe("a", **position)
            for event in range(10):
                await publisher.store("events.acme.a", str(100 * number + event).encode())
            broker.stop.wanted.set()
            position = {"position": (await client.until("connection.draining"))["position"]}
            assert await client.closed() == 1012
            for message in client.log:
                if message["type"] == "event":
                    seen.append(message["payload"]["event"])
                    position = {"position": message["payload"]["position"]}
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe("a", **position)
        await publisher.store("events.acme.a", b"-1")
        while seen[-1] != -1:
            seen.append((await client.until("event"))["event"])
    assert seen == [*(100 * number + event for number in range(3) for event in range(10)), -1]
