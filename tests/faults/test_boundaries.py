"""A connection in which something breaks, once or for ever, ends alone: on a real process, under load."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket

from broker.links.poll.session import PollTransport
from broker.links.sse import SseTransport
from broker.links.tcp import Link
from broker.links.websocket.transport import WebSocketTransport
from tests.faults.support.world import PATIENCE_SECONDS
from tests.support.http import request
from tests.support.seams import ACTORS, transports
from tests.support.websocket import Client, connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.faults.support.world import World

KINDS = {
    "websocket": (*ACTORS, *transports(Link, WebSocketTransport)),
    "sse": (*ACTORS, *transports(Link, SseTransport)),
    "poll": (*ACTORS, *transports(PollTransport)),
}
AT_ONCE = 12
REACHED = 60  # seams at least; some are reached by what only a simulation does
EXPECTED = (
    OSError,
    AssertionError,  # of a client that has not got what it waited for
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    pytest.fail.Exception,
)
SUBSCRIPTIONS: tuple[dict[str, Any], ...] = (
    {"channel": ["orders.1", "live.cursor.1"]},
    {"channel": "orders.2", "lag": "drop"},
    {"channel": "orders.3", "durable": "mine"},
    {"channel": "stock.>", "last": 20},
    {"channel": "orders.0", "snapshot": True},
)


async def by_websocket(world: World, token: str) -> None:
    """All that a client can do, and little of it read for a while."""
    async with connect(world.broker.ws or "", token=token, receive_buffer=4096) as client:
        for number, wish in enumerate(SUBSCRIPTIONS):
            await client.send("subscribe", wish, messageId=str(number))
        await client.send("subscribe", {"channel": "orders.secret.1"})
        await trio.sleep(1)
        await read(client, 1.0)
        await client.send("acknowledge", {"durable": "mine", "position": await client.position()})
        await client.send("unsubscribe", {"channel": "orders.2"})
        await read(client, 2.0)


async def read(client: Client, seconds: float) -> None:
    with trio.move_on_after(seconds):
        while True:
            await client.receive()


async def by_stream(world: World, token: str) -> None:
    await exchange(world, token, "GET", "/sse?channel=orders.%3E&channel=live.%3E&last=20", None, 3.0)


async def by_polls(world: World, token: str) -> None:
    body = json.dumps({"channels": ["orders.>", "live.>"], "last": 10, "wait": 1}).encode()
    for _ in range(2):
        await exchange(world, token, "POST", "/poll", body, 2.0)


async def exchange(
    world: World, token: str, method: str, path: str, body: bytes | None, seconds: float
) -> None:
    """A request, and whatever comes of it."""
    address = world.broker.ws or ""
    stream = await trio.open_tcp_stream("127.0.0.1", urlsplit(address).port or 1)
    async with stream:
        await stream.send_all(request(address, method, path, token=token, body=body))
        with trio.move_on_after(seconds):
            while await stream.receive_some():
                pass


WAYS = {"websocket": by_websocket, "sse": by_stream, "poll": by_polls}


async def hits(world: World, file: Path) -> dict[str, int]:
    file.unlink(missing_ok=True)
    world.broker.signal(signal.SIGUSR2)
    with trio.fail_after(PATIENCE_SECONDS):
        while not file.exists():
            await trio.sleep(0.02)
    found: dict[str, int] = json.loads(file.read_text())
    return found


@pytest.mark.fault(28)
async def test_a_fault_at_each_seam(open_world: OpenWorld, report: Report, tmp_path: Path) -> None:
    """Once and for ever, over each kind of link, while the configuration is read anew now and then."""
    file = tmp_path / "seams"
    async with open_world(
        mixed=True,
        churning=4,
        variables={"FAULTS_SEAMS": str(file)},
        limits={"heartbeat_seconds": 1, "connections_per_user": 50},
        drain={"grace_seconds": 5, "reconnects_per_second": 200},
    ) as world:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def victim(kind: str, seam: str, how: str) -> None:
            token = world.broker.token(
                "acme", f"{seam}:{how}", subscribe=[">", "live.>"], publish=[">"], deny=["orders.secret.>"]
            )
            async with limit:
                try:
                    with trio.move_on_after(PATIENCE_SECONDS):
                        await WAYS[kind](world, token)
                except* EXPECTED:
                    pass

        async def disturb() -> None:
            while True:
                await trio.sleep(4)
                world.broker.signal(signal.SIGHUP)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb)
            async with trio.open_nursery() as victims:
                for kind, seams in KINDS.items():
                    for seam in seams:
                        for how in ("once", "ever"):
                            if (seam.method, how) == ("detach", "ever"):
                                continue  # what cannot be given back is not
                            victims.start_soon(victim, kind, seam.name, how)
            nursery.cancel_scope.cancel()
        struck = await hits(world, file)
        await world.flows()
        reached = {user.partition(":")[0] for user in struck}
        assert len(reached) >= REACHED, sorted(reached)
    report.add(f"{sum(struck.values())} faults at {len(reached)} seams of connections", world)
