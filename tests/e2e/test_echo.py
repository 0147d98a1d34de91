"""`echo: false`: an event is not sent back to its connection, and its user knows it by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.http import ask
from tests.support.polling import Poller
from tests.support.sse import listen

if TYPE_CHECKING:
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats

SHOWN = {"user": "alice", "id": "x-1"}


@pytest.mark.parametrize("channel", ["orders.7", "live.cursor"])
async def test_everybody_but_the_connection_gets_it(broker: Broker, channel: str) -> None:
    """Others of the same user with its id, other users without, itself not; what follows comes in order."""
    async with (
        broker.client() as alice,
        broker.client() as other,
        broker.client(user="bob") as bob,
    ):
        for client in (alice, other, bob):
            await client.subscribe(channel)
        for number, options in enumerate([{"echo": False}, {"echo": True}, {}], 1):
            await alice.send("publish", {"channel": channel, "event": number, "id": f"x-{number}", **options})
        assert [each["event"] for each in await alice.events(2)] == [2, 3]
        assert (await other.events(3))[0]["publisher"] == SHOWN
        assert [each["publisher"] for each in await bob.events(3)] == [{"user": "alice"}] * 3


async def test_wherever_it_is_read_from(broker: Broker, publisher: RawNats) -> None:
    """Catching up, a connection does not get it either; a snapshot has it, and so does another connection."""
    async with broker.client() as alice:
        await alice.subscribe("b")
        await alice.send("publish", {"channel": "a", "event": 1, "id": "x-1", "echo": False})
        position = (await alice.until("published"))["position"]
        await publisher.store("events.acme.a", b"2")
        await broker.caught_up()
        await alice.subscribe("a", last=2)
        assert [(each["event"], each["catch_up"]) for each in await alice.events(1)] == [(2, 1)]
        await alice.send("publish", {"channel": "c", "event": 3, "echo": False})
        await alice.until("published")
        await broker.caught_up()
        await alice.subscribe("c", snapshot=True)
        assert [each["event"] for each in await alice.events(1)] == [3]
        await alice.until("subscription.live")
        await alice.quiet()
    before = f"{position.rpartition('-')[0]}-{int(position.rpartition('-')[2]) - 1}"
    async with broker.client() as again:
        await again.subscribe("a", position=before)
        assert [each.get("publisher") for each in await again.events(2)] == [SHOWN, None]


async def test_without_websocket(broker: Broker) -> None:
    """The id is shown over SSE and in polls too, to that user alone; a single request has no echo."""
    url = broker.running.http
    payload: dict[str, Any] = {"channel": "a", "event": 1, "id": "x-1"}
    for echo in (True, False):
        refused = await ask(url, "POST", "/publish", json=payload | {"echo": echo}, token=broker.token())
        assert (refused.status, refused.problem["code"]) == (400, "bad_message")
        assert "payload.echo" in refused.problem["detail"]
    pollers = [Poller(url, broker.token(user=user), ["a"]) for user in ("alice", "bob")]
    for each in pollers:
        await each.poll()
    async with listen(url, "a", token=broker.token()) as stream:
        await ask(url, "POST", "/publish", json=payload, token=broker.token())
        assert (await stream.until("event"))["publisher"] == SHOWN
    for each in pollers:
        await each.until(1)
    assert [each.events[0]["publisher"] for each in pollers] == [SHOWN, {"user": "alice"}]
