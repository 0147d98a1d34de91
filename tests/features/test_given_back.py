"""Whatever a connection holds is given back once, however it ends and whatever breaks on the way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from broker.flow.flow import Flow
from broker.wire.messages import CLIENT_MESSAGES
from tests.support.asking import Granting, open_client
from tests.support.sabotage import broken
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from broker.permissions import Principal

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.fixture
def bus() -> ScriptedBus:
    return ScriptedBus(random=random.Random(1))


class Narrowing(Granting):
    def again(self, principal: Principal) -> Principal:
        return attrs.evolve(principal, subscribe=("orders.>",))


@pytest.mark.parametrize("what", ["renewal", "reload", "unsubscribe"])
async def test_what_is_given_back_at_a_crash_is_given_back_once(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that crashes ends the connection in the middle of a request, which counts after that."""
    verifier = Narrowing()
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        await client.ask("subscribe", {"channel": ["a", "b", "c"]}, "subscribed")
        connection, supervisor = client.connection, client.supervisor
        process = supervisor.services.budgets.process
        assert process.subscriptions == 3
        if what == "renewal":
            connection.flow.send = broken
            client.link.say("authenticate", {"token": "acme:u"})
        elif what == "reload":
            connection.flow.send = broken
            await supervisor.reload(supervisor.config, verifier)  # type: ignore[arg-type]
        else:  # `leave` first writes the share of a running tick, where there is one
            monkeypatch.setattr(Flow, "settle", lambda flow: flow.try_send(b"x") and None)
            connection.flow.send = broken
            client.link.say("unsubscribe", {"channel": "a"})
        await trio.sleep(10)
        assert not supervisor.connections
        assert process.subscriptions == 0


async def test_a_send_that_crashes_within_a_durable_subscribe(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays: no name, no cursor in use, no selection in the log."""
    async with open_client(bus, room=1 << 20) as client:
        await client.ask("subscribe", {"channel": "a"}, "subscribed")
        connection, supervisor = client.connection, client.supervisor
        monkeypatch.setattr(Flow, "settle", lambda flow: flow.try_send(b"x") and None)
        connection.flow.send = broken
        client.link.say("subscribe", {"channel": ["a", "b"], "durable": "d", "position": "inc0-0"})
        await trio.sleep(10)
        assert not supervisor.connections
        assert not supervisor.durables.held
        assert not any(each.holders for each in supervisor.durables.cursors.used.values())
        assert not supervisor.tenants.running["acme"].log.selections
        assert len(repr(connection)) < 1000, "a crash's line in the log tells of nothing else"


@pytest.mark.parametrize("channel", ["a", "live.a"])
async def test_a_subscription_that_breaks_as_it_joins(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    """Its log forgets what it matched: a live one would be fetched from NATS for nobody."""
    async with open_client(bus, room=1 << 20) as client:
        await client.ask("ping", {}, "pong")
        monkeypatch.setattr(Flow, "join", broken)
        client.link.say("subscribe", {"channel": channel})
        await trio.sleep(10)
        assert not client.supervisor.connections
        assert not client.supervisor.tenants.running["acme"].log.selections


async def test_a_name_is_free_after_a_failed_subscribe(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """The next subscribe under it is no conflict."""
    bus.put("events.acme.a", b"1")
    async with open_client(bus, room=1 << 20) as client:
        await client.ask("ping", {}, "pong")
        connection, durables = client.connection, client.supervisor.durables
        while connection.session.principal is None:
            await trio.lowlevel.checkpoint()
        client.link.say("subscribe", {"channel": "a", "durable": "d"})
        while not connection.busy:
            await trio.lowlevel.checkpoint()
        principal = connection.session.principal
        connection.session.principal = attrs.evolve(principal, deny=("b",))
        assert (await client.until("error"))["code"] == "unavailable"
        connection.session.principal = principal
        assert not durables.held
        assert not any(each.holders for each in durables.cursors.used.values())
        assert connection.session.counted == 0
        await client.ask("subscribe", {"channel": "a", "durable": "d"}, "subscribed")


async def test_what_is_unsubscribed_or_fails_is_given_back(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """The process holds the subscriptions that stand, after each request."""
    async with open_client(bus, room=1 << 20) as client:
        process = client.supervisor.services.budgets.process
        await client.ask("subscribe", {"channel": ["a", "b"]}, "subscribed")
        await client.ask("unsubscribe", {"channel": ["a", "a"]}, "unsubscribed")
        assert process.subscriptions == 1
        await client.ask("subscribe", {"channel": ["a", "c"], "durable": "d"}, "subscribed")
        await client.ask("subscribe", {"channel": ["e", "f"], "durable": "d"}, "error")
        await client.ask("subscribe", {"channel": ["live.e"], "durable": "d"}, "error")
        await client.ask("ping", {}, "pong")
        assert process.subscriptions == 3


async def test_the_table_of_a_broker(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """Each message that a client may send is a request of this broker, which has no documents."""
    async with open_client(bus, room=1 << 20) as client:
        found = client.supervisor.services.table
        assert {name: request.message for name, request in found.items()} == {
            name: kind for name, kind in CLIENT_MESSAGES.items() if not name.startswith("state.")
        }
