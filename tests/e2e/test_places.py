"""A user's places on real sockets: the dead give way to the living, and polls hold one while they wait."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio

from broker.actors.places import ANSWER_SECONDS
from broker.links.poll.session import PollTransport
from tests.e2e.test_lag import SMALL
from tests.faults.support.proxy import run_proxy
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask, opened, request
from tests.support.polling import Poller
from tests.support.sse import listen
from tests.support.websocket import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.actors.transport import Transport
    from tests.faults.support.proxy import Proxy
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PLACES = 2
SECONDS = 45.0


@pytest.fixture
async def broker(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    settings = configure(tmp_path / "b", nats.url, limits={"connections_per_user": PLACES})
    async with run_broker(tmp_path / "b", settings) as running:
        yield running


@asynccontextmanager
async def way_to(broker: Broker) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the broker, and its WebSocket address."""
    port = urlsplit(broker.running.http).port
    assert port
    async with run_proxy(lambda: port) as proxy:
        yield proxy, f"ws://127.0.0.1:{proxy.port}/ws"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS):
        while not condition():
            await trio.sleep(0.02)


def silent(supervisor: Supervisor, count: int) -> bool:
    """Whether so many of alice's connections have said nothing for a moment."""
    now = trio.current_time()
    known = [each for each in supervisor.connections if each.session.principal]
    return sum(each.spoke <= now - ANSWER_SECONDS for each in known) == count


async def full(transport: Transport) -> None:
    """Until the other side's kernel has taken nothing for longer than it is given."""
    with trio.fail_after(2 * SECONDS):
        before = -1
        while (now := transport.state().acknowledged) > before:
            before = now
            await trio.sleep(2 * ANSWER_SECONDS)


def polled(supervisor: Supervisor) -> bool:
    """Whether a poll waits."""
    transports = [each.transport for each in supervisor.connections]
    return any(isinstance(each, PollTransport) and each.turn and each.asked for each in transports)


async def test_a_black_hole_keeps_nobody_out(broker: Broker, supervisors: list[Supervisor]) -> None:
    """Behind a proxy that goes on acknowledging for them: whoever comes back gets in at once, and again."""
    (supervisor,) = supervisors
    async with way_to(broker) as (proxy, url), AsyncExitStack() as stack:
        for _ in range(PLACES):
            await stack.enter_async_context(connect(url, token=broker.token()))
        proxy.black_hole()
        await until(lambda: silent(supervisor, PLACES))
        for count in range(PLACES):
            new = await stack.enter_async_context(broker.client())
            await new.subscribe("a")
            await until(lambda count=count: len(list(supervisor.ends.find(code=4009))) == count + 1)  # type: ignore[misc]
        assert {each.by for each in supervisor.ends.find(code=4009)} == {"broker"}
        async with broker.stranger() as third:
            await third.send("authenticate", {"token": broker.token()})
            assert await third.closed() == 4010
        proxy.heal()


async def test_the_living_stay(broker: Broker, supervisors: list[Supervisor]) -> None:
    """However silent they were: a WebSocket answers, a stream takes what it is sent."""
    async with (
        broker.client() as websocket,
        listen(broker.running.http, "a", token=broker.token()) as stream,
    ):
        await stream.until("subscribed")
        await until(lambda: silent(supervisors[0], 2))
        async with broker.stranger() as third:
            await third.send("authenticate", {"token": broker.token()})
            assert await third.closed() == 4010
        answer = await Poller(broker.running.http, broker.token(), ["a"]).ask()
        assert (answer.status, answer.problem["code"]) == (429, "limit_connections")
        await websocket.send("publish", {"channel": "a", "event": 1})
        await websocket.expect("published")
        assert (await stream.until("event"))["event"] == 1


async def test_a_slow_link_is_no_dead_one(
    broker: Broker, supervisors: list[Supervisor], publisher: RawNats
) -> None:
    """Its pong is behind many seconds of events, which it takes one by one; they wait in the broker, too."""
    (supervisor,) = supervisors
    async with way_to(broker) as (proxy, url), connect(url, token=broker.token()) as slow, broker.client():
        await slow.subscribe("q")
        proxy.bandwidth, proxy.slices = 50_000.0, 5_000
        sent, more = 0, 40  # beyond what the way takes: they stay here until it is asked
        while more:
            await publisher.store("events.acme.q", b'"' + b"x" * 50_000 + b'"')
            sent += 1
            more -= any(each.unsent for each in supervisor.connections)
        await until(lambda: silent(supervisor, 2))
        async with broker.stranger() as third:
            await third.send("authenticate", {"token": broker.token()})
            assert await third.closed() == 4010
        proxy.heal()
        assert len(await slow.events(sent)) == sent


async def test_a_stream_that_takes_nothing(
    broker: Broker, supervisors: list[Supervisor], publisher: RawNats
) -> None:
    """Nobody reads it, and its link is full: it gives way."""
    (supervisor,) = supervisors
    token, url = broker.token(), broker.running.http
    async with listen(url, "q", token=token, receive_buffer=SMALL) as stream, broker.client():
        await stream.until("subscribed")
        for _ in range(100):
            await publisher.store("events.acme.q", b'"' + b"x" * 50_000 + b'"')
        await until(lambda: any(each.unsent for each in supervisor.connections))
        await full(next(each for each in supervisor.connections if each.unsent).transport)
        async with broker.client() as third:
            await third.subscribe("a")
        await until(lambda: any(supervisor.ends.find(code=4009)))
        (end,) = supervisor.ends.find(code=4009)
        assert end.transport == "sse"


async def test_page_after_page(
    broker: Broker, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each polls, waits, and is left for the next within a moment: none of them is locked out."""
    monkeypatch.setattr("broker.links.poll.session.GRACE_SECONDS", 1000.0)  # nothing is to be waited for
    (supervisor,) = supervisors
    url, token = broker.running.http, broker.token()
    for _ in range(6 * PLACES):
        page = Poller(url, token, ["a"])
        await page.poll()
        body = b'{"channels":["a"],"session":"%b","position":"%b"}' % (
            (page.session or "").encode(),
            (page.position or "").encode(),
        )
        async with opened(url, request(url, "POST", "/poll", token=token, body=body)):
            await until(lambda: polled(supervisor))
        await until(lambda: all(each.resting for each in supervisor.connections))
        assert len(supervisor.connections) <= PLACES
    async with broker.client(), broker.client():  # which needs all places
        answer = await page.ask()
        assert (answer.status, answer.problem["code"]) == (429, "limit_connections")


async def test_a_session_goes_on_after_its_rest(
    broker: Broker, supervisors: list[Supervisor], publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it rests others have its place; it goes on where it was as soon as there is one for it."""
    monkeypatch.setattr("broker.links.poll.session.GRACE_SECONDS", 0.1)
    (supervisor,) = supervisors
    alice = Poller(broker.running.http, broker.token(), ["a", "live.b"])
    await alice.poll()
    await publisher.store("events.acme.a", b"1")
    assert await alice.until(1) == [1]
    session = (alice.session or "").partition(".")[0]
    await until(lambda: all(each.resting for each in supervisor.connections))
    async with broker.client(), broker.client():
        await publisher.store("events.acme.a", b"2")
        await publisher.publish("live.acme.b", b"3")
        assert (await alice.ask()).status == 429
    with trio.fail_after(SECONDS):
        while (answer := await alice.ask()).status == 429:
            await trio.sleep(0.05)
    alice.take(answer)
    assert sorted(await alice.until(3)) == [1, 2, 3]
    assert (alice.session or "").partition(".")[0] == session
    assert alice.gaps == []


async def test_sessions_that_nobody_polls_are_bounded(broker: Broker, supervisors: list[Supervisor]) -> None:
    """A client that never sends its session back has at most as many as it may have connections."""
    (supervisor,) = supervisors
    body: dict[str, Any] = {"channels": ["a"], "wait": 60}
    url, token = broker.running.http, broker.token()
    for _ in range(4 * PLACES):
        asked = request(url, "POST", "/poll", token=token, body=b'{"channels":["a"],"last":1,"wait":60}')
        async with opened(url, asked):
            await until(lambda: polled(supervisor))
        await until(lambda: all(each.resting for each in supervisor.connections))
    assert len(supervisor.connections) == PLACES
    ends = list(supervisor.ends.find(code=1001))
    assert len(ends) == 3 * PLACES
    assert {(each.by, each.reason) for each in ends} == {
        ("broker", "more sessions without a poll than a user may have")
    }
    answer = await ask(url, "POST", "/poll", token=token, json=body | {"wait": 0})
    assert answer.status == 200
