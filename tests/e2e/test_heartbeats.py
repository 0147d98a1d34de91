"""Idle, absent and slow clients: who is pinged, who is closed, and what the others notice of it."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from wsproto.events import Ping

from broker.bus.nats import NatsBus
from tests.support import rawnats
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import hear, open_raw, say
from tests.web.harness import PONG, Client, eventually, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from broker.actors.connection import Connection
    from broker.actors.supervisor import Supervisor
    from broker.bus.base import PublishAck
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

QUICK = {"heartbeat_seconds": 0.3, "heartbeat_timeout_seconds": 1.0}  # within which a busy machine answers
BODY = b'"' + b"x" * 20000 + b'"'
EVENTS = 600  # of `BODY`: more than the kernel takes for a client that does not read


@asynccontextmanager
async def reader(broker: Broker, *, user: str = "slow", **subscribe: Any) -> AsyncIterator[Client]:
    """A client that answers no ping and reads only when it is told to, subscribed where that is given."""
    async with open_raw(broker.running.ws) as client:
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131072)  # and it stays at that
        await client.upgrade()
        await say(client, "authenticate", {"token": broker.token(user=user)})
        if subscribe:
            await say(client, "subscribe", subscribe)
        ready = "subscribed" if subscribe else "connection.authenticated"
        while (await hear(client))["type"] != ready:
            pass
        yield client


def connection_of(supervisor: Supervisor, user: str = "slow") -> Connection:
    return next(
        each
        for each in supervisor.connections
        if each.session.principal and each.session.principal.user == user
    )


async def publish(publisher: RawNats, count: int = EVENTS, *, first: int = 0) -> None:
    """Numbered events: the number is the last token of the channel."""
    for number in range(first, first + count):
        await publisher.publish(f"events.acme.big.{number}", BODY)
    await publisher.flush()


async def next_event(client: Client) -> str:
    while (message := await hear(client))["type"] != "event":
        pass
    channel: str = message["payload"]["channel"]
    return channel


# --- heartbeats ------------------------------------------------------------------------------------


async def test_idle_clients_are_pinged(tmp_path: Path, nats: NatsServer) -> None:
    """While nothing else goes on pings come, and who answers them stays."""
    settings = configure(tmp_path, nats.url, limits=QUICK)
    async with run_broker(tmp_path, settings) as broker, reader(broker) as client:
        pings = 0
        while pings < 4:
            if isinstance(await client.event(), Ping):
                pings += 1
                await client.send(frame(PONG))
        await say(client, "ping")
        assert (await hear(client))["type"] == "pong"


async def test_pings_do_not_wait_for_the_time_out(tmp_path: Path, nats: NatsServer) -> None:
    """They come every `heartbeat_seconds` also where an answer may take longer than that."""
    limits = QUICK | {"heartbeat_timeout_seconds": 60}
    settings = configure(tmp_path, nats.url, limits=limits)
    async with run_broker(tmp_path, settings) as broker, reader(broker) as client:
        pings = 0
        with trio.fail_after(45):
            while pings < 3:
                if isinstance(await client.event(), Ping):
                    pings += 1
                    await client.send(frame(PONG))


async def test_no_answer_is_4009(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Whoever does not answer is gone, though it may still talk; who does answer is not affected."""
    async with (
        run_broker(tmp_path, configure(tmp_path, nats.url, limits=QUICK)) as broker,
        broker.client() as healthy,
    ):
        async with reader(broker) as client:
            code, reason = await client.closed()
            assert (code, reason) == (4009, "no answer to a ping")
        await healthy.subscribe("a")
        await publisher.store("events.acme.a", b"1")
        assert (await healthy.expect("event"))["event"] == 1


async def test_an_answer_behind_a_request_that_takes_long(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While NATS takes its time over a publish nothing else is read: the client may have answered."""
    begun, go_on = trio.Event(), trio.Event()
    real = NatsBus.publish

    async def publish(bus: NatsBus, subject: str, body: bytes, **options: Any) -> PublishAck:
        if subject == "events.acme.a":
            begun.set()
            await go_on.wait()
        return await real(bus, subject, body, **options)

    monkeypatch.setattr(NatsBus, "publish", publish)
    settings = configure(tmp_path, nats.url, limits=QUICK)
    async with run_broker(tmp_path, settings) as broker, reader(broker) as client:
        connection = connection_of(supervisors[0])
        await say(client, "publish", {"channel": "a", "event": 1})
        await begun.wait()
        while not isinstance(await client.event(), Ping):
            pass
        await client.send(frame(PONG))
        pinged = connection.pinged or 0.0
        await eventually(lambda: (connection.pinged or 0.0) > pinged or connection.closing)
        go_on.set()
        while (await hear(client))["type"] != "published":
            pass


async def test_strangers_are_pinged_too(tmp_path: Path, nats: NatsServer) -> None:
    """A link that is dead before it has shown a token is found out as well."""
    settings = configure(tmp_path, nats.url, limits=QUICK)
    async with run_broker(tmp_path, settings) as broker, open_raw(broker.running.ws) as client:
        await client.upgrade()
        assert (await client.closed())[0] == 4009


# --- stalls ----------------------------------------------------------------------------------------


async def test_stalled_reader_is_closed_and_hinders_nobody(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """Who takes nothing for `stall_seconds` is closed with 4009; all the others get everything meanwhile."""
    limits = {"heartbeat_seconds": 0.3, "stall_seconds": 2.0}
    async with (
        run_broker(tmp_path, configure(tmp_path, nats.url, limits=limits)) as broker,
        reader(broker, channel="big.>"),
        broker.client() as healthy,
    ):
        stalled = connection_of(supervisors[0])
        await healthy.subscribe("big.>")
        await publish(publisher)
        events = [event["channel"] for event in await healthy.events(EVENTS)]
        assert events == [f"big.{number}" for number in range(EVENTS)]
        await eventually(lambda: stalled not in supervisors[0].connections)
        assert stalled.close_code == 4009
        await healthy.quiet()


async def test_slow_reader_gets_everything(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """With the default policy nothing is left out, though memory and ring hold next to nothing of it."""
    settings = configure(tmp_path, nats.url, ring={"events": 16})
    async with run_broker(tmp_path, settings) as broker, reader(broker, channel="big.>") as client:
        connection = connection_of(supervisors[0])
        await publish(publisher)
        await eventually(lambda: supervisors[0].meters.received["stored"] >= EVENTS)
        flow = connection.flow
        await eventually(lambda: flow.rest is not None)  # in between it reads the next
        assert flow.unsent <= len(BODY) + 200
        assert [await next_event(client) for _ in range(EVENTS)] == [f"big.{n}" for n in range(EVENTS)]
        await say(client, "ping")
        assert (await hear(client))["type"] == "pong"
        assert connection.flow.main is None
        assert connection.sender is None


async def test_slow_reader_of_many_replies_is_not_read_from(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
    """A client that asks and asks and takes no answers is held up, and holds no memory."""
    settings = configure(tmp_path, nats.url, limits={"requests_burst": 10**6})
    async with run_broker(tmp_path, settings) as broker, reader(broker) as client:
        connection = connection_of(supervisors[0])
        wish = {"channel": [f"{'x' * 200}.{number}" for number in range(100)]}
        asked = 0
        done = trio.Event()

        async def ask() -> None:
            nonlocal asked
            while connection.drained is None:
                await say(client, "subscribe", wish)
                asked += 1
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await eventually(lambda: connection.drained is not None)
            assert 16 <= len(connection.flow.rest or ()) < 20
            heard = 0
            while not done.is_set():  # the last one may wait for room, which reading makes
                await answered(client)
                heard += 1
        for _ in range(asked - heard):
            await answered(client)
        await eventually(lambda: connection.flow.main is None)


async def answered(client: Client) -> None:
    assert (await hear(client))["type"] == "subscribed"


async def test_lag_close(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """With `lag: close` a connection whose unsent bytes reach the limit is closed with 4008, no other."""
    async with (
        run_broker(tmp_path, configure(tmp_path, nats.url)) as broker,
        reader(broker, channel="big.>", lag="close"),
        reader(broker, user="patient", channel="big.>") as patient,
        broker.client() as healthy,
    ):
        closed = connection_of(supervisors[0])
        await healthy.subscribe("big.>", lag="close")
        for number in range(EVENTS):
            await publish(publisher, 1, first=number)
            assert (await healthy.expect("event"))["channel"] == f"big.{number}"
        await eventually(lambda: closed not in supervisors[0].connections)
        assert closed.close_code == 4008
        assert [await next_event(patient) for _ in range(EVENTS)] == [f"big.{n}" for n in range(EVENTS)]
        await healthy.quiet()


async def test_heartbeats_go_on_after_a_client_was_behind(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """Once it has caught up a client is pinged again at the usual pace, however long a stall may last."""
    limits = QUICK | {"stall_seconds": 3600.0}
    async with (
        run_broker(tmp_path, configure(tmp_path, nats.url, limits=limits)) as broker,
        reader(broker, channel="big.>") as client,
    ):
        connection = connection_of(supervisors[0])
        await publish(publisher)
        await eventually(lambda: supervisors[0].meters.received["stored"] >= EVENTS)
        await eventually(lambda: connection.flow.main is not None)
        before = trio.current_time()
        await eventually(lambda: connection.heard > before)  # the timer has seen that bytes wait
        for _ in range(EVENTS):
            await next_event(client)
        while not isinstance(event := await client.event(), Ping):
            assert event is not None, "the link ended before it was pinged"
        assert (await client.closed())[0] == 4009


@asynccontextmanager
async def waiting(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> AsyncIterator[Connection]:
    """A client that has accepted all that the broker has at hand, and NATS has been away for two hours."""
    limits = QUICK | {"heartbeat_timeout_seconds": 3600.0, "stall_seconds": 3600.0}
    settings = configure(tmp_path, nats.url, limits=limits, ring={"events": 1})
    async with run_broker(tmp_path, settings) as broker, reader(broker, channel="big.>") as client:
        connection = connection_of(supervisors[0])
        await publish(publisher, 3 * EVENTS)  # more than the kernel takes and the broker remembers
        await eventually(lambda: supervisors[0].meters.received["stored"] >= 3 * EVENTS)
        await nats.kill9()
        flow, sender = connection.flow, connection.sender
        assert sender is not None
        while flow.rest or not sender.reading:
            while flow.rest:
                await hear(client)
            await eventually(lambda: bool(flow.rest) or sender.reading)
        assert flow.main
        connection.progress -= 7200
        yield connection


async def assert_patience(connection: Connection, supervisor: Supervisor) -> None:
    """Has the timer look at a client that accepts nothing: it is not the end."""
    await eventually(lambda: connection.flow.rest is not None)
    before = trio.current_time()
    supervisor.services.wheel.schedule(connection, before)
    await eventually(lambda: connection.heard > before or connection.closing)
    assert not connection.closing


async def test_a_stall_is_measured_from_where_it_begins(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """A client that waited for the broker, not the broker for it, has its whole `stall_seconds` left."""
    async with waiting(tmp_path, nats, publisher, supervisors) as connection:
        await nats.start()
        async with rawnats.connect(nats.url) as again:
            await publish(again, first=3 * EVENTS)
        await assert_patience(connection, supervisors[0])


async def test_a_stall_may_begin_with_a_reply(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """The same where no events come, and what the broker says otherwise is more than the link accepts."""
    async with waiting(tmp_path, nats, publisher, supervisors) as connection:
        for _ in range(1_000_000):
            if connection.flow.rest is not None:
                break
            connection.flow.push(connection.transport.ping(connection.position()))
        await assert_patience(connection, supervisors[0])
