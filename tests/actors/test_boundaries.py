"""A fault in one connection, wherever it strikes and however long it lasts, ends that connection alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from broker import config, subjects
from broker.actors.boundary import Boundary, kept
from broker.actors.supervisor import TIDY_SECONDS, Supervisor
from broker.actors.tenants import IDLE_SECONDS
from broker.actors.transport import Hello
from broker.errors import CloseCode
from broker.flow.flow import Flow
from tests.support.sabotage import Sabotage
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seams import ACTORS, Seam, Seams, transports

if TYPE_CHECKING:
    from broker.eventlog.log import EventLog

pytestmark = pytest.mark.usefixtures("quiet_logs")

SEAMS = {seam.name: seam for seam in (*ACTORS, *transports(ScriptedLink))}
# What gives something back. Where that fails for ever it stays, and it alone.
KEEPS = {
    "Tenant.leave",
    "Flow.detach",
    "Flow.quit",
    "Connection.return_budgets",
    "Wheel.cancel",
    "Durables.detach",
}
KEEPS_AFTER_ALL = {"Connection.return_budgets", "Durables.detach"}  # that is not tried again


@attrs.define(eq=False)
class Listener:
    """A client that reads, as fast as it is told to."""

    link: ScriptedLink
    heard: list[dict[str, Any]] = attrs.Factory(list)

    async def read(self, most: int, pause: float) -> None:
        while not self.link.cut:
            for opcode, payload in await self.link.read(most):
                if opcode == 1:
                    self.heard.append(json.loads(payload))
            await trio.sleep(pause)

    def stored(self) -> list[int]:
        return [
            each["payload"]["event"]["n"]
            for each in self.heard
            if each["type"] == "event" and "position" in each["payload"] and "n" in each["payload"]["event"]
        ]


async def live_all_there_is(bus: ScriptedBus, supervisor: Supervisor, link: ScriptedLink) -> None:
    """All that a client can do and all that can be done to it, whether it is still there or not."""
    numbers = iter(range(100_000))

    async def publish(count: int) -> None:
        for _ in range(count):
            bus.put(
                f"events.acme.{'abcd'[next(numbers) % 4]}", b'{"n":%d,"x":"%b"}' % (next(numbers), b"x" * 200)
            )
            bus.put_live("live.acme.a", b"{}")
            await trio.sleep(0.02)

    say = link.say
    say("subscribe", {"channel": ["a", "live.a"]}, messageId="1")
    await publish(10)
    say("subscribe", {"channel": "e", "durable": "mine"}, messageId="2")
    say("subscribe", {"channel": "b", "lag": "drop"}, messageId="3")
    say("subscribe", {"channel": "secret.x"}, messageId="4")
    await publish(40)  # more than the link takes: it falls behind, and too far
    say("subscribe", {"channel": "c", "position": "inc0-1"}, messageId="5")
    say("subscribe", {"channel": "d", "snapshot": True}, messageId="6")
    await publish(5)
    say("publish", {"channel": "f", "event": {}}, messageId="7")
    say("acknowledge", {"durable": "mine", "position": "inc0-1"}, messageId="8")
    say("unsubscribe", {"channel": "b"}, messageId="9")
    await publish(5)
    await trio.sleep(20)  # it has caught up, and is pinged
    say("subscribe", {"channel": ["a"], "position": "inc0-1"}, messageId="10")
    say("subscribe", {"channel": "*", "every_ms": 100}, messageId="11")
    await publish(10)
    say("subscribe", {"channel": "*", "every_ms": 200}, messageId="12")
    await publish(5)
    await trio.sleep(20)
    await supervisor.reload(
        attrs.evolve(supervisor.config, limits=attrs.evolve(supervisor.config.limits, message_bytes=5000)),
        supervisor.verifier,
    )
    supervisor.bans_changed()
    await publish(5)
    bus.interrupt()
    supervisor.tenants.get("acme").inbox.lose()  # which moves everybody
    await publish(5)
    await trio.sleep(5)
    for connection in list(supervisor.connections):
        if connection.session.principal and connection.session.principal.user != "good":
            connection.drain(0)
            connection.dismiss(CloseCode.SERVICE_RESTART)
    await publish(5)
    await trio.sleep(5)
    link.drop()
    await trio.sleep(5)


def settings() -> config.Config:
    return config.Config(
        limits=config.Limits(
            heartbeat_seconds=3,
            heartbeat_timeout_seconds=1000,
            stall_seconds=1000,
            outbound_bytes=3000,
            connections_per_user=10,
        )
    )


@pytest.mark.parametrize("how", ["once", "ever"])
@pytest.mark.parametrize("seam", SEAMS.values(), ids=SEAMS)
async def test_a_fault_ends_its_connection_alone(
    seam: Seam, how: str, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbour gets every event; what it held is given back; neither tenant nor broker notices."""
    user = f"{seam.name}:{how}"
    seams = Seams()
    seams.install([seam], monkeypatch.setattr)
    bus = ScriptedBus(random=random.Random(1))
    supervisor = Supervisor(
        config=settings(),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(("secret.>",)),  # type: ignore[arg-type]
    )
    for number in range(20):
        bus.put("events.acme.d", b'{"old":%d}' % number)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        good, bad = Listener(ScriptedLink(room=1 << 20)), Listener(ScriptedLink(room=3000))
        for each, name in ((good, "good"), (bad, user)):
            hello = Hello(peer="192.0.2.1:1", token=f"acme:{name}")
            nursery.start_soon(supervisor.serve, each.link, hello)
        nursery.start_soon(good.read, 1 << 20, 0.0)
        nursery.start_soon(bad.read, 500, 0.1)
        good.link.say("subscribe", {"channel": [">", "live.>"]})
        await trio.sleep(1)
        first = bus.last_sequence
        await live_all_there_is(bus, supervisor, bad.link)
        assert seams.hits[user], "never reached"

        (left,) = supervisor.connections
        assert left.transport is good.link
        assert not left.closing
        stored = [
            json.loads(body)["n"]
            for sequence, subject, body, _ in bus.records
            if sequence > first and b'"n"' in body
        ]
        assert good.stored() == stored
        tenant = supervisor.tenants.running["acme"]
        assert not tenant.restarts
        if seam.name not in (KEEPS if how == "ever" else KEEPS_AFTER_ALL):
            assert list(tenant.flows) == [left.flow]
            assert {each.pattern for each in tenant.log.selections.values()} == {">", "live.>"}
            assert {each for bucket in supervisor.services.wheel.buckets.values() for each in bucket} == {
                left
            }
            held = {budget.key: budget.connections for budget in supervisor.services.budgets.shared.values()}
            assert not held.get(("acme", user))
            assert supervisor.services.budgets.process.connections == 1
            assert not any(cursor.holders for cursor in supervisor.durables.cursors.used.values())
        nursery.cancel_scope.cancel()


async def test_a_tenant_that_cannot_be_rebuilt_keeps_nobody_who_has_left(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rebuild breaks for ever, after some have been moved; who leaves meanwhile is gone for good."""
    bus = ScriptedBus(random=random.Random(1))
    supervisor = Supervisor(
        config=settings(),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        links = [ScriptedLink(room=1 << 20) for _ in range(5)]
        for link in links:
            nursery.start_soon(supervisor.serve, link, Hello(peer="192.0.2.1:1", token="acme:alice"))
            link.say("subscribe", {"channel": ["a", "live.a"]})
        await trio.sleep(1)
        tenant = supervisor.tenants.running["acme"]
        real, calls = Flow.move, Counter[Flow]()

        def move(self: Flow, log: EventLog) -> None:
            calls[self] += 1
            real(self, log)
            if len(calls) > 2:
                raise Sabotage

        monkeypatch.setattr(Flow, "move", move)
        tenant.inbox.lose()
        await trio.sleep(5)
        assert len(supervisor.connections) == 2
        assert len(tenant.flows) == 2
        for link in links:
            link.drop()
        await trio.sleep(5)
        tenant.inbox.lose()
        await trio.sleep(5)
        assert set(calls.values()) == {1}
        assert tenant.statistics().connections == 0
        assert not tenant.log.selections
        await trio.sleep(IDLE_SECONDS + TIDY_SECONDS * 2)
        assert not supervisor.tenants.running
        nursery.cancel_scope.cancel()


async def test_what_goes_wrong_while_it_is_cancelled() -> None:
    """What is found beside a cancellation ends at the boundary, the cancellation goes on."""
    part = Part()
    with trio.CancelScope() as scope:
        with Boundary(part):
            async with trio.open_nursery() as nursery:

                async def breaks() -> None:
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise Sabotage

                nursery.start_soon(breaks)
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.lowlevel.checkpoint()
        raise AssertionError("the cancellation was swallowed")
    assert scope.cancelled_caught
    assert len(part.crashes) == 1


@attrs.define(eq=False)
class Part:
    crashes: list[Exception] = attrs.Factory(list)

    def crashed(self, error: Exception) -> None:
        self.crashes.append(error)


async def test_a_part_of_the_background_begins_again(autojump_clock: trio.abc.Clock) -> None:
    """However often it breaks: after growing pauses, and nothing else ends for it."""
    times: list[float] = []

    async def work() -> None:
        times.append(trio.current_time())
        raise OSError("no space left on device")

    with trio.move_on_after(60):
        await kept("work", work)
    pauses = [after - before for before, after in pairwise(times)]
    assert len(pauses) > 10
    assert pauses[0] < 0.2
    assert 2 < max(pauses) <= 5
