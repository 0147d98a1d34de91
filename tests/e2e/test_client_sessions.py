"""Both sessions against a real broker: killed, restarted, drained; tokens that run out and are revoked."""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker import config
from broker.auth import tokens
from broker.client import Duplicate, Event, Gap, Message, Published, Reconnecting, SessionEnded
from broker.errors import (
    BadAnswer,
    Forbidden,
    InvalidPosition,
    NotSubscribed,
    Rejected,
    Timeout,
    TooLarge,
    Unavailable,
)
from tests.client.shells import SHELLS, Running
from tests.e2e.test_calls import header, headers_of, service
from tests.e2e.test_control import ban, within
from tests.support import command
from tests.support.broker import Broker, configure, run_broker
from tests.support.ports import held_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.client.shells import Shell
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 60
TEMPLATE = """
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:0"
data_dir = "state"
[nats]
urls = ["{nats}"]
[stream]
max_bytes = "64MiB"
[permissions]
subscribe = [">"]
publish = [">"]
request = [">"]
[limits]
messages_per_minute = 100000
[drain]
reconnects_per_second = 1000
[[auth.keys]]
name = "main"
secret_file = "secret"
tenants = ["acme"]
"""


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest) -> Running:
    """Runs a session at an address for the length of a block: on Trio, and on asyncio."""
    return SHELLS[request.param]


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Iterator[Path]:
    """The configuration of a broker that comes back at the same address."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text(secrets.token_hex(32))
    path = tmp_path / "broker.toml"
    with held_ports() as [port]:  # else a client that calls it again and again might meet itself
        path.write_text(TEMPLATE.format(nats=nats.url, port=port))
        yield path


@asynccontextmanager
async def serve(file: Path) -> AsyncIterator[command.Running]:
    async with command.start("serve", "--config", file) as running:
        await running.until('"ready"', "stderr")
        yield running


def address(file: Path) -> str:
    return f"ws://{config.load(file, {}, production=True).server.listen}/ws"


def token(file: Path, user: str = "alice") -> str:
    auth = config.load(file, {}, production=True).auth
    return tokens.sign(auth, tenant="acme", user=user, now=time.time(), ttl=3600)


async def until(session: Shell, wanted: Any, kind: str | None = None) -> Any:
    with trio.fail_after(PATIENCE_SECONDS):
        async for item in session:
            if isinstance(item, wanted) and (kind is None or getattr(item, "type", None) == kind):
                return item
    raise AssertionError(f"no {wanted}")


async def events(session: Shell, last: int) -> list[Event]:
    """The events up to the one whose value is `last`; there must be no gap."""
    found: list[Event] = []
    while not found or found[-1].value != last:
        item = await until(session, Event | Gap)
        assert isinstance(item, Event), item
        found.append(item)
    return found


def numbers(found: list[Event]) -> list[int]:
    return [event.value for event in found]


async def quiet(session: Shell, publisher: RawNats) -> None:
    """Nothing has come but what is published now."""
    await publisher.store("events.acme.a", b'"mark"')
    assert (await until(session, Event)).value == "mark"


async def test_kill_9(file: Path, publisher: RawNats, running: Running) -> None:
    """Over two kills of the broker nothing is missing and nothing comes twice: events, and publishes too."""
    count = 300
    promised: list[Published] = []

    async def services() -> None:
        for number in range(count):
            await publisher.store("events.acme.a", str(number).encode())

    async def speak(session: Shell) -> None:
        promised.extend([await session.publish("b", number) for number in range(count)])

    async with (
        running(address(file), token(file)) as listener,
        running(address(file), token(file, "bob")) as speaker,
        trio.open_nursery() as nursery,
    ):
        await listener.subscribe("a", "b", last=1)  # a start, so that what comes before it counts too
        heard: dict[str, list[int]] = {"a": [], "b": []}
        async with serve(file) as broker:
            await until(listener, Message, "subscribed")
            nursery.start_soon(services)
            nursery.start_soon(speak, speaker)
            while sum(map(len, heard.values())) < 100:
                event = await until(listener, Event)
                heard[event.channel].append(event.value)
            broker.process.kill()
        async with serve(file) as broker:
            while sum(map(len, heard.values())) < 250:
                event = await until(listener, Event)
                heard[event.channel].append(event.value)
            broker.process.kill()
        async with serve(file):
            while sum(map(len, heard.values())) < 2 * count:
                item = await until(listener, Event | Gap)
                assert isinstance(item, Event), item
                heard[item.channel].append(item.value)
            await quiet(listener, publisher)
    assert heard == {"a": list(range(count)), "b": list(range(count))}
    assert len({each.position for each in promised}) == count


async def test_queued_while_there_is_no_broker(file: Path, running: Running) -> None:
    """What is published without a connection is sent when there is one; what was given up is not."""
    kept: list[Published] = []
    async with running(address(file), token(file)) as session, trio.open_nursery() as nursery:

        async def publish(number: int) -> None:
            kept.append(await session.publish("a", number, event_id=f"id-{number}"))

        with trio.move_on_after(0.1):
            await session.publish("a", 0)
        nursery.start_soon(publish, 1)
        nursery.start_soon(publish, 2)
        async with serve(file), running(address(file), token(file)) as other:
            with trio.fail_after(PATIENCE_SECONDS):
                while len(kept) < 2:
                    await trio.sleep(0.01)
                with pytest.raises(Duplicate, match="another event has the id 'id-1'") as again:
                    await other.publish("a", 1, event_id="id-1")
            assert again.value.position in [each.position for each in kept]
            await other.subscribe("a", last=10)
            assert sorted(numbers([await until(other, Event) for _ in range(2)])) == [1, 2]


async def test_rates_are_kept_to(tmp_path: Path, nats: NatsServer, running: Running) -> None:
    """More publishes at once than are allowed: all of them are stored, and the connection is not lost."""
    limits = {"messages_per_minute": 1200, "messages_burst": 5}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    positions: list[str | None] = []
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        running(broker.running.ws, broker.token()) as session,
    ):

        async def publish(number: int) -> None:
            positions.append((await session.publish("a", number)).position)

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(publish, number)
        assert len(set(positions)) == 60
        seen = [await anext(session) for _ in range(2)]
        assert not any(isinstance(item, Reconnecting) for item in seen)


async def test_publishes_that_are_refused(broker: Broker, running: Running) -> None:
    """What the broker refuses is raised where it was asked for; what was too big ends nothing but itself."""
    limited = partial(broker.token, subscribe=[">"], publish=["a"])
    async with running(broker.running.ws, limited()) as session:
        with pytest.raises(Forbidden):
            await session.publish("b", 1)
        with pytest.raises(TooLarge):
            await session.publish("a", "x" * 70_000)
        assert (await session.publish("a", b'{"n" : 1}')).position


async def test_requests(broker: Broker, publisher: RawNats, running: Running) -> None:
    """The answer of a service, and each reason why there is none."""
    refusal = header(Nats_Service_Error="order 7 is shipped", Nats_Service_Error_Code="409")
    async with (
        service(publisher, "rpc.acme.a", lambda message: (b'{"got":%b}' % message.body,)) as asked,
        service(publisher, "rpc.acme.b", lambda _: (b"", refusal)),
        service(publisher, "rpc.acme.c", lambda _: (b"{",)),
        running(broker.running.ws, broker.token(request=["*"])) as session,
    ):
        assert await session.request("a", {"n": [1.5, None]}, id="x-1") == {"got": {"n": [1.5, None]}}
        assert headers_of(asked[0])["Broker-Request"] == "x-1"
        with pytest.raises(Rejected, match="order 7 is shipped") as refused:
            await session.request("b")
        assert refused.value.status == 409
        for method, kind in (("c", BadAnswer), ("nobody", Unavailable), ("a.b", Forbidden)):
            with pytest.raises(kind):
                await session.request(method)
        assert await session.request("a") == {"got": None}


async def test_history(broker: Broker, publisher: RawNats, running: Running) -> None:
    """Back to the beginning, and on from there; a subscription joins at the newest page."""
    for number in range(7):
        await publisher.store("events.acme.a", b"%d" % number)
    await broker.caught_up()
    async with running(broker.running.ws, broker.token()) as session:
        page = newest = await session.history("a", limit=3)
        found = [[event.value for event in page.events]]
        while page.more:
            page = await page.older()
            found.append([event.value for event in page.events])
        assert found == [[4, 5, 6], [1, 2, 3], [0]]
        assert [event.value for event in (await page.newer()).events] == [1, 2, 3]
        since = await session.history("a", since=newest.events[1].stored_at)
        assert [event.value for event in since.events] == [5, 6]
        with pytest.raises(Forbidden):
            await session.history("users.somebody.a")
        await session.subscribe("a", position=newest.last)
        await publisher.store("events.acme.a", b"7")
        while not isinstance(event := await anext(session), Event):
            pass
        assert event.value == 7


async def test_a_request_over_a_kill(file: Path, publisher: RawNats, running: Running) -> None:
    """The service has it once, whatever happens to the broker; what is asked meanwhile waits for another."""
    received = await publisher.subscribe("rpc.acme.pay")
    await publisher.flush()
    async with (
        running(address(file), token(file)) as session,
        service(publisher, "rpc.acme.show", lambda _: (b"1",)),
    ):

        async def pay() -> None:
            with pytest.raises(Timeout):
                await session.request("pay", timeout=30)

        async with serve(file) as broker, trio.open_nursery() as nursery:
            nursery.start_soon(pay)
            with trio.fail_after(PATIENCE_SECONDS):
                await received.receive()
            broker.process.kill()
        shown = trio.Event()

        async def show() -> None:
            while not shown.is_set():
                with suppress(Unavailable):  # a broker that starts slowly: nobody has it, so once more
                    assert await session.request("show", timeout=30) == 1
                    shown.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            async with serve(file):
                with trio.fail_after(PATIENCE_SECONDS):
                    await shown.wait()
        assert received.statistics().current_buffer_used == 0


async def test_durable_over_a_kill(file: Path, publisher: RawNats, running: Running) -> None:
    """A durable subscription begins after what was acknowledged; over a cut nothing is handed over twice."""
    async with serve(file) as broker, running(address(file), token(file)) as session:
        await session.subscribe("a", durable="phone")
        await until(session, Message, "subscribed")
        for number in range(10):
            await publisher.store("events.acme.a", str(number).encode())
        first = await events(session, 9)
        with trio.fail_after(PATIENCE_SECONDS):
            await session.acknowledge("phone", str(first[3].position))
        broker.process.kill()
        await until(session, Reconnecting)
        async with serve(file):
            session.acknowledge_nowait("phone", str(first[5].position))  # before anything came again
            await publisher.store("events.acme.a", b"10")
            assert numbers(await events(session, 10)) == [10]
            with trio.fail_after(PATIENCE_SECONDS):
                await session.acknowledge("phone", str(first[6].position))
            with pytest.raises(NotSubscribed):
                await session.acknowledge("other", str(first[6].position))
    async with serve(file), running(address(file), token(file)) as another:
        await another.subscribe("a", durable="phone")
        assert numbers(await events(another, 10)) == [7, 8, 9, 10]
        with pytest.raises(InvalidPosition), trio.fail_after(PATIENCE_SECONDS):
            await another.acknowledge("phone", "elsewhere-7")


async def test_durable_beside_others_over_a_kill(file: Path, publisher: RawNats, running: Running) -> None:
    """Beside a live list the durable one catches up, and both go on where they were."""
    async with running(address(file), token(file)) as session:
        async with serve(file) as broker:
            await session.subscribe("b")
            await session.subscribe("a", durable="phone")
            for _ in range(2):
                await until(session, Message, "subscribed")
            for number in range(4):
                await publisher.store(f"events.acme.{'ab'[number % 2]}", str(number).encode())
            assert numbers(await events(session, 3)) == [0, 1, 2, 3]
            broker.process.kill()
        for number in range(4, 8):
            await publisher.store(f"events.acme.{'ab'[number % 2]}", str(number).encode())
        async with serve(file):
            found = [await until(session, Event) for _ in range(4)]
            assert sorted(numbers(found)) == [4, 5, 6, 7]
            await quiet(session, publisher)


async def test_renewal(tmp_path: Path, nats: NatsServer, publisher: RawNats, running: Running) -> None:
    """Before the token expires another one is asked for, also after a failure; the connection stays."""
    settings = configure(tmp_path / "b", nats.url, auth={"expiring_seconds": 60.0})
    asked = 0
    async with run_broker(tmp_path / "b", settings) as broker:

        async def short_then_none_then_long() -> str:
            nonlocal asked
            asked += 1
            if asked == 2:
                raise Unavailable("the token service restarts")
            return broker.token(ttl=3 if asked == 1 else 3600)

        async with running(broker.running.ws, short_then_none_then_long) as session:
            await session.subscribe("a")
            first = await until(session, Message, "connection.authenticated")
            second = await until(session, Message, "connection.authenticated")
            assert second.payload["expires_at"] > first.payload["expires_at"]
            assert asked == 3
            await publisher.store("events.acme.a", b"1")
            item = await anext(session)
            while not isinstance(item, Event):
                assert not isinstance(item, Reconnecting)
                item = await anext(session)


async def test_a_token_without_renewal(tmp_path: Path, nats: NatsServer, running: Running) -> None:
    """A fixed token that has run out ends the session, and whoever still waits for an answer hears why."""
    settings = configure(tmp_path / "b", nats.url, limits={"messages_burst": 1, "messages_per_minute": 1})
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        running(broker.running.ws, broker.token(ttl=2)) as session,
    ):
        await session.publish("a", 1)
        with pytest.raises(SessionEnded, match="4002"), trio.fail_after(PATIENCE_SECONDS):
            await session.publish("a", 2)
        with pytest.raises(SessionEnded, match="4002"):
            await until(session, Event)
        with pytest.raises(SessionEnded, match="4002"):
            await session.publish("a", 3)


async def test_drained(file: Path, publisher: RawNats, running: Running) -> None:
    """A broker that restarts in order says so; the session leaves, comes back and misses nothing."""
    async with running(address(file), token(file)) as session:
        async with serve(file) as broker:
            await session.subscribe("a")
            await until(session, Message, "subscribed")
            await publisher.store("events.acme.a", b"1")
            assert numbers(await events(session, 1)) == [1]
            broker.process.terminate()
            await until(session, Message, "connection.draining")
            await publisher.store("events.acme.a", b"2")
            await broker.end()
        async with serve(file):
            await publisher.store("events.acme.a", b"3")
            assert numbers(await events(session, 3)) == [2, 3]


async def test_revoked(broker: Broker, supervisors: list[Supervisor], running: Running) -> None:
    """4501 ends the session, with the broker's own words."""
    async with running(broker.running.ws, broker.token()) as session:
        await session.subscribe("a")
        await until(session, Message, "subscribed")
        await within(supervisors[0], supervisors[0].control.put, ban("suspension"))
        with pytest.raises(SessionEnded, match="this tenant is suspended") as ended:
            await until(session, Event)
        assert ended.value.closed_with == 4501


async def test_gaps_are_handed_over(broker: Broker, publisher: RawNats, running: Running) -> None:
    """A position of another stream is answered by what there is, after a gap that says so."""
    await publisher.store("events.acme.a", b"1")
    async with running(broker.running.ws, broker.token()) as session:
        await session.subscribe("a", position="elsewhere-7")
        gap = await until(session, Gap)
        assert (gap.channels, gap.reason) == (("a",), "reset")
        assert numbers(await events(session, 1)) == [1]
