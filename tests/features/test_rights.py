"""What a renewed token changes in what stands, and which durable names a connection holds."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.asking import Granting, open_client
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from tests.support.asking import Client


@pytest.fixture
def bus() -> ScriptedBus:
    return ScriptedBus(random=random.Random(1))


async def renewed(client: Client) -> None:
    await client.ask("authenticate", {"token": "acme:u"}, "connection.authenticated")


def said(client: Client, kind: str) -> list[Any]:
    return [each["payload"]["channel"] for each in client.messages if each["type"] == kind]


async def test_a_renewal_narrows_what_stands(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """What is no longer allowed ends as a whole; where something else is denied, that is left out."""
    verifier = Granting(changes={"subscribe": (">", "live.>"), "deny": ("orders.secret.>",)})
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        asked = ["orders.>", "orders.1", "b.*", "live.x", "me.>", "x.y"]
        await client.ask("subscribe", {"channel": asked}, "subscribed")
        flow = client.connection.flow
        assert flow.subscriptions()["orders.>"] == ("orders.secret.>",)
        verifier.changes = {"subscribe": ("orders.>", "b.*"), "deny": ("orders.*.x", "b.1")}
        before = len(client.messages)
        client.link.say("authenticate", {"token": "acme:u"})
        await client.ask("ping", {}, "pong")
        kinds = [each["type"] for each in client.messages[before:]]
        assert kinds == ["connection.authenticated", "unsubscribed", "unsubscribed", "pong"], (
            "first the reply"
        )
        assert sorted(said(client, "unsubscribed")) == ["live.x", "x.y"]
        left = {"orders.>": ("orders.*.x",), "orders.1": (), "b.*": ("b.1",), "users.u.>": ()}
        assert flow.subscriptions() == left
        assert client.connection.session.counted == 4
        verifier.changes = {"subscribe": ("orders.>", "b.*"), "deny": ("orders.>",)}
        await renewed(client)
        assert flow.subscriptions() == {"b.*": (), "users.u.>": ()}
        assert client.connection.session.counted == 2


async def test_a_renewal_widens_what_stands(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """A denial that is gone lets its channels in again."""
    verifier = Granting(changes={"deny": ("orders.secret.>",)})
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        await client.ask("subscribe", {"channel": "orders.>"}, "subscribed")
        verifier.changes = {"deny": ()}
        await renewed(client)
        assert client.connection.flow.subscriptions() == {"orders.>": ()}


async def test_a_token_of_somebody_else_changes_nothing(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """It is refused, and no record says that it was accepted."""
    async with open_client(bus, room=1 << 20) as client:
        await client.ask("subscribe", {"channel": "a"}, "subscribed")
        (error,) = await client.ask("authenticate", {"token": "acme:other"}, "error")
        assert error["code"] == "forbidden"
        assert client.connection.who()["user"] == "u"
        assert list(client.connection.flow.subscriptions()) == ["a"]
        kinds = [subject.rpartition(".")[2] for subject, _, _ in client.supervisor.audit.waiting]
        assert "renewed" not in kinds
        assert "refused" in kinds


async def test_one_subscribe_holds_a_name(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """A second one is a conflict, until all subscriptions of the first have ended."""
    async with open_client(bus, room=1 << 20) as client:
        durables = client.supervisor.durables

        def names() -> list[str]:
            return [*durables.of(client.connection)]

        three = {"channel": ["orders.1", "orders.2", "live.x"], "durable": "d"}
        await client.ask("subscribe", three, "subscribed")
        (error,) = await client.ask("subscribe", {"channel": "orders.3", "durable": "d"}, "error")
        assert error["code"] == "conflict"
        assert "orders.3" not in client.connection.flow.subscriptions()
        await client.ask("subscribe", {"channel": "orders.3", "durable": "e"}, "subscribed")
        await client.ask("unsubscribe", {"channel": "orders.1"}, "unsubscribed")
        assert names() == ["d", "e"]
        await client.ask("unsubscribe", {"channel": "orders.2"}, "unsubscribed")
        assert names() == ["e"], "a live channel needs no cursor"
        (error,) = await client.ask("acknowledge", {"durable": "d", "position": "inc0-0"}, "error")
        assert error["code"] == "not_subscribed"
        await client.ask("subscribe", {"channel": "orders.1", "durable": "d"}, "subscribed")
        assert names() == ["e", "d"]
        held = [*durables.cursors.used.values()]
        assert sorted(cursor.holders for cursor in held) == [1, 1]


async def test_a_renewal_ends_durable_subscriptions_too(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """The name of a subscription that is no longer allowed is let go of."""
    verifier = Granting()
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        await client.ask("subscribe", {"channel": "x.y", "durable": "d"}, "subscribed")
        (cursor,) = client.supervisor.durables.cursors.used.values()
        verifier.changes = {"subscribe": ("orders.>",)}
        await renewed(client)
        assert not client.supervisor.durables.held
        assert cursor.holders == 0


async def test_what_may_be_acknowledged(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """Live channels alone have nothing to acknowledge; of others what was sent, and nothing else."""
    bus.put("events.acme.a", b"1")
    async with open_client(bus, room=1 << 20) as client:
        await client.ask("subscribe", {"channel": ["live.x", "live.y"], "durable": "l"}, "subscribed")
        await client.ask("subscribe", {"channel": "a", "durable": "d", "last": 1}, "subscribed", "event")
        for durable, position, code in (
            ("l", "inc0-1", "not_subscribed"),
            ("d", "inc0-2", "invalid_position"),
            ("d", "other-1", "invalid_position"),
            ("d", "nonsense", "invalid_position"),
        ):
            wish = {"durable": durable, "position": position}
            assert (await client.ask("acknowledge", wish, "error"))[0]["code"] == code
        client.link.say("acknowledge", {"durable": "d", "position": "inc0-1"})
        await client.ask("ping", {}, "pong")
        (cursor,) = client.supervisor.durables.cursors.used.values()
        assert str(cursor.position) == "inc0-1"


def audited(client: Client, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(body) for _, body, _ in client.supervisor.audit.waiting]
    return [each for each in records if each["kind"] == kind]


async def test_a_timer_is_no_refusal(autojump_clock: trio.abc.Clock, bus: ScriptedBus) -> None:
    """The end of a token by its time is in the audit trail as that, and as nothing else."""
    verifier = Granting(changes={"life": 5.0})
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        client.supervisor.audit.store = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        await trio.sleep(8)
        assert [each["code"] for each in audited(client, "ended")] == [4002]
        assert not audited(client, "refused")


async def test_each_refused_channel_of_a_list_is_audited(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """Also where others of the list are accepted."""
    verifier = Granting(changes={"subscribe": ("a",)})
    async with open_client(bus, room=1 << 20, verifier=verifier) as client:
        await client.ask("subscribe", {"channel": ["a", "b", "c"]}, "subscribed")
        assert [each["channel"] for each in audited(client, "refused")] == ["b", "c"]
