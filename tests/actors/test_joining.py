"""A start beside what already runs, through the real actors over scripted links."""

from __future__ import annotations

import random

import attrs
import trio
import trio.lowlevel

from tests.support.asking import open_client
from tests.support.scripted_bus import ScriptedBus


async def test_a_restart_beside_a_catch_up(autojump_clock: trio.abc.Clock) -> None:
    """P never goes back below what a catch-up has sent: else that would end at P and begin again."""
    bus = ScriptedBus(random=random.Random(1))
    for number in range(1, 301):
        bus.put("events.acme.a" if number % 2 else "events.acme.b", b"%d" % number)
    async with open_client(bus, room=2000) as reader:
        reader.link.say("subscribe", {"channel": "b"})
        await reader.until("subscribed")
        reader.link.say("subscribe", {"channel": "a", "position": "inc0-0"})
        assert (await reader.until("subscribed"))["catch_up"] == 1
        while sum(each["type"] == "event" for each in reader.messages) < 60:
            await reader.read(500)
        reader.link.say("subscribe", {"channel": "b", "position": "inc0-100"})
        await trio.sleep(5)  # the link is full: the catch-up stands still while the start is resolved
        answer = await reader.until("subscribed")
        assert answer["catch_up"] == 2
        assert int(answer["position"].removeprefix("inc0-")) >= 300
        while sum(each["type"] == "subscription.live" for each in reader.messages) < 2:
            await reader.read(500)
        events = [each["payload"] for each in reader.messages if each["type"] == "event"]
        assert [each["event"] for each in events if each["channel"] == "a"] == list(range(1, 301, 2))
        assert [each["event"] for each in events if each["channel"] == "b"] == list(range(102, 301, 2))


async def test_a_rebuild_within_a_snapshot(autojump_clock: trio.abc.Clock) -> None:
    """What of a snapshot has not been sent when the tenant begins anew is sent after that."""
    bus = ScriptedBus(random=random.Random(1))
    for number in range(40):
        bus.put(f"events.acme.a.{number}", b'"%s"' % (b"x" * 4000))
    bus.put("events.acme.b", b"1")
    async with open_client(bus, room=500) as reader:
        reader.link.say("subscribe", {"channel": "b"})
        await reader.until("subscribed")
        reader.link.say("subscribe", {"channel": "a.>", "snapshot": True})
        await reader.until("subscribed")
        while not any(each["type"] == "event" for each in reader.messages):
            await reader.read(500)
        reader.supervisor.tenants.running["acme"].inbox.lose()
        await trio.sleep(5)
        await reader.until("subscription.live")
        got = [each["payload"]["channel"] for each in reader.messages if each["type"] == "event"]
        assert got == [f"a.{number}" for number in range(40)]


async def test_permissions_that_change_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    """A subscription that was allowed when it was asked for is refused when it is not any more."""
    bus = ScriptedBus(random=random.Random(1))
    bus.put("events.acme.a", b"1")
    async with open_client(bus, room=5000) as reader:
        reader.link.say("subscribe", {"channel": "a", "position": "inc0-0"})
        connection = reader.connection
        with trio.fail_after(10):
            while connection.session.principal is None or not connection.busy:
                await trio.lowlevel.checkpoint()
        connection.session.principal = attrs.evolve(connection.session.principal, subscribe=("b",))
        error = await reader.until("error")
        assert (error["code"], error["retryable"]) == ("unavailable", True)
        assert not connection.flow.stored
