"""What breaks inside ends where it broke; what nobody needs any more is given back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.actors import following, supervisor, tenants
from broker.actors.connection import Connection
from broker.actors.transport import Text
from broker.errors import CloseCode
from broker.eventlog.log import EventLog
from broker.eventlog.tick import Tick
from broker.features.subscriptions import joining
from broker.features.subscriptions.feature import Subscriptions
from broker.flow.flow import Flow
from broker.flow.sending import Sending
from broker.links.websocket.transport import WebSocketTransport
from broker.session.session import Session
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask, hear, open_raw, say
from tests.support.sabotage import Sabotage, broken
from tests.web.harness import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.actors.transport import Inbound
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

pytestmark = pytest.mark.usefixtures("quiet_logs")

CUT = 1006  # what a client sees of a crash: the broker says nothing more where something is broken


def crash_once(patch: pytest.MonkeyPatch, owner: Any, name: str, *, skip: int = 0) -> list[str]:
    """Has one call of a function fail, after `skip` good ones; the list says when it has."""
    real = getattr(owner, name)
    calls: list[str] = []
    crashed: list[str] = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == skip + 1:
            crashed.append(name)
            raise Sabotage(name)
        return real(*args, **options)

    patch.setattr(owner, name, call)
    return crashed


async def test_a_trace_that_breaks_breaks_nothing_else(
    broker: Broker, publisher: RawNats, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong while an event is looked at is told to who follows; delivery goes on as it was."""

    monkeypatch.setattr(following, "look", broken)
    inside = supervisors[0].tenants
    async with broker.client() as client:
        await client.subscribe(["a"])
        with inside.followers.follow("acme", ">") as follower:
            for number in range(3):
                await publisher.store("events.acme.a", b"%d" % number)
            assert [each["event"] for each in await client.events(3)] == [0, 1, 2]
            assert isinstance((await follower.take())[0], following.Missed)
    assert inside.running["acme"].restarts == 0


async def listened(publisher: RawNats, subject: str) -> bool:
    """Whether anybody has subscribed to a subject in NATS: else its server answers with 503 at once."""
    inbox = f"_INBOX.listened.{publisher.sids}"
    answers = await publisher.subscribe(inbox)
    await publisher.publish(subject, b"no event", reply=inbox.encode())
    await publisher.flush()
    return not answers.statistics().current_buffer_used


# --- crashes of a connection -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Session, "receive"),
        (Session, "call"),
        (Subscriptions, "join"),
        (Connection, "attempt"),
        (joining.Joiner, "act"),
        (joining.Joiner, "prepare"),
        (Flow, "join"),
    ],
)
async def test_crash_of_a_request_ends_that_connection_alone(
    broker: Broker, publisher: RawNats, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """A cut for the one, a further event for the other; and the one may come back at once."""
    async with broker.client(user="bob") as other:
        await other.subscribe("a")
        async with broker.client() as client:
            with monkeypatch.context() as patch:
                crashed = crash_once(patch, owner, name)
                await client.send("subscribe", {"channel": ["a", "live.a"]})
                assert await client.closed() == CUT
                assert crashed
            assert all(message["type"] != "error" for message in client.log)
        await publisher.store("events.acme.a", b"1")
        assert (await other.expect("event"))["event"] == 1
        async with broker.client() as client:
            await client.subscribe(["a", "live.a"])
            await publisher.store("events.acme.a", b"2")
            assert (await client.expect("event"))["event"] == 2


async def test_crash_of_a_timer_ends_that_connection_alone(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel that calls it turns on for all the others."""
    settings = configure(tmp_path, nats.url, limits={"heartbeat_seconds": 0.5})
    async with run_broker(tmp_path, settings) as broker, broker.client(user="bob") as other:
        await other.subscribe("a")
        async with broker.client() as client:
            real = Connection.heartbeat

            def heartbeat(self: Connection, now: float) -> float:
                if self.session.principal and self.session.principal.user == "alice":
                    raise Sabotage
                return real(self, now)

            monkeypatch.setattr(Connection, "heartbeat", heartbeat)
            assert await client.closed() == CUT
        await publisher.store("events.acme.a", b"1")
        assert (await other.expect("event"))["event"] == 1
        async with open_raw(broker.running.ws) as raw:
            await raw.upgrade()
            while type(await raw.event()).__name__ != "Ping":
                pass


async def test_crash_of_the_sending_task_ends_that_connection_alone(
    broker: Broker, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut also where it breaks while a client is catching up."""
    async with broker.client(user="bob") as other:
        position = (await other.subscribe("a"))["position"]
        await publisher.store("events.acme.a", b"1")
        await other.expect("event")
        async with broker.client() as client:
            with monkeypatch.context() as patch:
                assert not crash_once(patch, Sending, "read_on")
                await client.send("subscribe", {"channel": "a", "position": position})
                assert await client.closed() == CUT
        await publisher.store("events.acme.a", b"2")
        assert (await other.expect("event"))["event"] == 2


async def test_message_that_arrives_as_the_connection_ends(
    broker: Broker, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read in the moment in which the broker closed the connection does nothing any more."""
    real = WebSocketTransport.receive
    (inside,) = supervisors

    async def receive(self: WebSocketTransport) -> Inbound:
        inbound = await real(self)
        if isinstance(inbound, Text) and b"authenticate" in inbound.data:
            next(iter(inside.connections)).end(CloseCode.AUTHENTICATION_DEADLINE, "just now")
        return inbound

    monkeypatch.setattr(WebSocketTransport, "receive", receive)
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": broker.token()})
        assert await client.closed() == 4001
    await eventually(lambda: not inside.connections)
    assert not inside.services.budgets.shared
    assert not inside.services.budgets.process.connections
    assert not any(tenant.flows for tenant in inside.tenants.running.values())
    assert not any(inside.services.wheel.buckets.values())


# --- crashes of a tenant ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "skip"),
    [
        (EventLog, "append", 0),
        (EventLog, "append", 3),
        (EventLog, "shares", 1),
        (EventLog, "finish", 2),
        (Tick, "join", 2),
    ],
)
async def test_crash_of_a_tenant_loses_and_doubles_nothing(
    broker: Broker,
    publisher: RawNats,
    monkeypatch: pytest.MonkeyPatch,
    supervisors: list[Supervisor],
    owner: Any,
    name: str,
    skip: int,
) -> None:
    """Its clients go on from where each has come to; other tenants notice nothing."""
    total = 600
    body = b"x" * 3000
    async with (
        broker.client() as everything,
        broker.client(user="bob") as some,
        broker.client(user="carol") as catching_up,
        broker.client("globex") as elsewhere,
        open_raw(broker.running.ws) as slow,
    ):
        start = (await everything.subscribe([">", "live.x"]))["position"]
        await some.subscribe(["n.*.0", "n.*.5"])
        await catching_up.subscribe("n.*.1")
        await elsewhere.subscribe(">")
        await slow.upgrade()
        await say(slow, "authenticate", {"token": broker.token(user="slow")})
        await say(slow, "subscribe", {"channel": ">"})
        while (await hear(slow))["type"] != "subscribed":
            pass
        crashed = crash_once(monkeypatch, owner, name, skip=skip)

        async def publish() -> None:
            for number in range(total):
                event = json.dumps({"n": number, "x": body.decode()}).encode()
                await publisher.publish(f"events.acme.n.{number}.{number % 10}", event)
                await publisher.publish(f"events.globex.n.{number}.{number % 10}", event)
                if not number % 40:
                    await publisher.flush()
                if number == total // 2:
                    await catching_up.send("subscribe", {"channel": "n.>", "position": start})
            await publisher.flush()

        async def follow(client: Any, expected: list[int], *, marked: bool = False) -> None:
            seen: list[int] = []
            while seen[-1:] != expected[-1:]:
                message = await (hear(client) if client is slow else client.receive())
                if message["type"] == "event" and message["payload"].get("catch_up") == (
                    1 if marked else None
                ):
                    seen.append(message["payload"]["event"]["n"])
                else:
                    assert message["type"] != "gap" or message["payload"]["channel"] == "live.x", message
            assert seen == expected

        numbers = range(total)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(follow, everything, list(numbers))
            nursery.start_soon(follow, some, [n for n in numbers if n % 10 in (0, 5)])
            nursery.start_soon(follow, elsewhere, list(numbers))
        assert crashed
        await follow(slow, list(numbers))
        while len({n["payload"]["event"]["n"] for n in catching_up.log if n["type"] == "event"}) < total:
            await catching_up.receive()
        assert not any(message["type"] == "gap" for message in elsewhere.log)
        for client in (everything, some, elsewhere):
            await client.quiet()
        restarts = {name: tenant.restarts for name, tenant in supervisors[0].tenants.running.items()}
        assert sum(restarts.values()) == 1
        metrics = (await ask(broker.running.admin, "/metrics")).body
        assert b"broker_tenant_restarts_total 1.0" in metrics
    gaps = [message["payload"] for message in everything.log if message["type"] == "gap"]
    live_lost = [{"channel": "live.x", "reason": "source"}] if restarts["acme"] else []
    assert gaps == live_lost


async def test_live_events_go_on_after_a_crash(
    broker: Broker, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live channels are told of what may be missing, and then get what comes."""
    async with broker.client() as client:
        await client.subscribe("live.a")
        crash_once(monkeypatch, EventLog, "append")
        await publisher.publish("live.acme.a", b"1")
        await publisher.flush()
        assert await client.expect("gap") == {"channel": "live.a", "reason": "source"}
        await publisher.publish("live.acme.a", b"2")
        await publisher.flush()
        assert (await client.expect("event"))["event"] == 2


# --- giving back -----------------------------------------------------------------------------------


async def test_idle_tenants_are_reaped(
    tmp_path: Path,
    nats: NatsServer,
    publisher: RawNats,
    supervisors: list[Supervisor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without clients a tenant goes, with its task and its subscriptions in NATS; with a client it stays."""
    monkeypatch.setattr(supervisor, "TIDY_SECONDS", 0.05)
    monkeypatch.setattr(tenants, "IDLE_SECONDS", 0.1)
    async with run_broker(tmp_path, configure(tmp_path, nats.url)) as broker, broker.client("stays") as stays:
        (inside,) = supervisors
        await stays.subscribe(["a", "live.a"])
        base = trio.lowlevel.current_statistics().tasks_living
        wheel = sum(map(len, inside.services.wheel.buckets.values()))
        for round_number in range(3):
            async with broker.client() as client, broker.client("globex") as other:
                await client.subscribe(["a", "live.a"])
                await other.subscribe(["a", "live.b"], last=3)
                assert await listened(publisher, "live.acme.a")
                assert await listened(publisher, "live.globex.a")
                await publisher.store("events.acme.a", b"%d" % round_number)
                assert (await client.until("event"))["event"] == round_number
            await eventually(lambda: inside.tenants.running.keys() == {"stays"})
            while await listened(publisher, "live.acme.a") or await listened(publisher, "live.globex.a"):
                pass
            await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= base)
        assert inside.live_subjects.held == {"live.stays.>", "live._all.>"}
        assert len(inside.live_subjects.locks) == 2
        assert len(inside.connections) == 1
        assert sum(each.connections for each in inside.services.budgets.shared.values()) == 1
        assert inside.services.budgets.process.connections == 1
        assert sum(map(len, inside.services.wheel.buckets.values())) == wheel
        await publisher.publish("live.stays.a", b"1")
        await publisher.store("events.stays.a", b"2")
        assert {event["event"] for event in await stays.events(2)} == {1, 2}
        await stays.quiet()


async def test_live_subjects_are_kept_for_who_is_about_to_need_them(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidying up in the very moment of a subscribe takes nothing away from it."""
    monkeypatch.setattr(supervisor, "TIDY_SECONDS", 0.0)
    async with run_broker(tmp_path, configure(tmp_path, nats.url)) as broker:
        for number in range(10):
            async with broker.client() as client:
                await client.subscribe("live.a")
                await publisher.publish("live.acme.a", b"%d" % number)
                await publisher.publish("live._all.a", b"%d" % number)
                await publisher.flush()
                assert [event["event"] for event in await client.events(2)] == [number, number]


async def test_everything_is_back_at_base_after_a_crowd(
    broker: Broker, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """A hundred clients that come, subscribe and leave rudely, some in the middle of it, leave nothing."""
    (inside,) = supervisors
    async with broker.client(user="stays") as stays:
        await stays.subscribe("a")
        base = trio.lowlevel.current_statistics().tasks_living
        topics = len(inside.tenants.running["acme"].log.selections)

        async def visit(number: int) -> None:
            async with open_raw(broker.running.ws) as client:
                await client.upgrade()
                if number % 5 == 0:
                    return
                await say(client, "authenticate", {"token": broker.token(user=f"u{number % 7}")})
                await say(client, "subscribe", {"channel": ["a", "live.a", f"b.{number}"], "last": 5})
                if number % 5 == 1:
                    return
                while (await hear(client))["type"] != "subscribed":
                    pass
                if number % 5 == 2:
                    await say(client, "publish", {"channel": "b", "event": 1})

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(visit, number)
        await eventually(lambda: len(inside.connections) == 1)
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= base)
        tenant = inside.tenants.running["acme"]
        assert len(tenant.flows) == 1
        assert len(tenant.log.selections) == topics
        assert sum(each.connections for each in inside.services.budgets.shared.values()) == 1
        assert inside.services.budgets.process.connections == 1
        await publisher.store("events.acme.a", b"1")
        assert (await stays.expect("event"))["event"] == 1
