"""Three nats-servers with three copies of everything, one of which is always late."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.faults.support.http import get
from tests.faults.support.proxy import Proxy, run_proxy
from tests.faults.support.world import PATIENCE_SECONDS
from tests.support.nats import NatsServer, run_nats
from tests.support.ports import held_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.follower import Follower
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats

NODES = 3
LATENCY = 0.8  # of the late one: elections need seconds
AWAY_SECONDS = 0.5, 3.0
PHASE_SECONDS = 5.0
ANSWER_SECONDS = 5.0  # a request may get lost while a leader is being chosen


@attrs.define(eq=False)
class Cluster:
    """Nodes 0 to 2 hold the copies; links between the last and the other two go through `slow`.

    The server that publishers and broker are connected to is a fourth, without JetStream: so any of the three
    may answer a read, and the late one does as often as the others.
    """

    ports: list[int]
    slow: list[Proxy]  # before node 0, node 1, and before the last
    nodes: list[NatsServer]

    def latency(self, seconds: float) -> None:
        for proxy in self.slow:
            proxy.latency = seconds

    async def last_sequence(self, number: int) -> int:
        """How far this node's copy of the events is."""
        node = self.nodes[number]
        ports = json.loads((node.directory / f"nats-server_{node.process.pid}.ports").read_text())
        _, body = await get(ports["monitoring"][0], "/jsz?streams=1")
        for account in json.loads(body).get("account_details", ()):
            for stream in account.get("stream_detail", ()):
                if stream["name"] == "EVENTS":
                    return int(stream["state"]["last_seq"])
        return 0


def routes(ports: list[int], slow: list[Proxy], number: int) -> list[str]:
    """Where a node finds the others; the late one and its peers find each other only through proxies."""
    late = NODES - 1
    found = []
    for other, port in enumerate(ports):
        if number == late and other < late:
            port = slow[other].port
        elif number < late and other == late:
            port = slow[late].port
        if other != number:
            found.append(f"nats-route://127.0.0.1:{port}")
    return found


def node_options(ports: list[int], slow: list[Proxy], number: int) -> dict[str, Any]:
    advertised = slow[number].port if number == NODES - 1 else ports[number]
    return {
        "server_name": f"node{number}",
        "http": "127.0.0.1:-1",
        "cluster": {
            "name": "faults",
            "listen": f"127.0.0.1:{ports[number]}",
            "advertise": f"127.0.0.1:{advertised}",
            "pool_size": -1,
            "routes": routes(ports, slow, number),
        },
    }


@asynccontextmanager
async def run_cluster(directory: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(held_ports(NODES + 1))  # routes have to be known before the servers run
        slow = [
            await stack.enter_async_context(run_proxy(partial(ports.__getitem__, number)))
            for number in range(NODES)
        ]
        nodes = []
        for number in range(NODES):
            place = directory / f"node{number}"
            place.mkdir()
            node = run_nats(place, **node_options(ports, slow, number))
            nodes.append(await stack.enter_async_context(node))
        yield Cluster(ports, slow, nodes)


async def lead_elsewhere(world: World) -> None:
    """Has the late node lead nothing: a late leader makes everybody late, and no copy staler than another."""
    late = f"node{NODES - 1}"

    async def led_elsewhere(nats: RawNats) -> bool:
        info = await nats.api("STREAM.INFO.EVENTS")
        leader = info.get("cluster", {}).get("leader")
        if leader == late:
            await nats.api("STREAM.LEADER.STEPDOWN.EVENTS", placement={"preferred": "node0"})
        return leader not in (None, late)  # none while one is being chosen

    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            with trio.move_on_after(ANSWER_SECONDS):
                if await world.with_nats(led_elsewhere):
                    return
            await trio.sleep(0.5)


async def wander(world: World, follower: Follower) -> None:
    """Goes away and comes back, again and again."""
    while not world.quiet:
        await trio.sleep(follower.random.uniform(*AWAY_SECONDS))
        if not world.quiet:
            follower.go_away()
            await trio.sleep(follower.random.uniform(*AWAY_SECONDS))
            follower.away = False


@pytest.mark.fault(25)
async def test_late_replica(open_world: OpenWorld, tmp_path: Path, report: Report) -> None:
    """Clients resume all the time, and what they read comes from a late copy as often as not: no hole."""
    lags: list[int] = []
    async with run_cluster(tmp_path) as cluster:
        entry = node_options(cluster.ports, cluster.slow, NODES)
        async with open_world(
            mixed=True,
            documents=True,
            churning=0,
            options={key: entry[key] for key in ("server_name", "cluster")},
            jetstream={"enabled": False},
            ring={"events": 64},
            stream={"replicas": NODES},
        ) as world:
            await lead_elsewhere(world)
            for follower in world.clients:
                world.nursery.start_soon(wander, world, follower)
            for number in range(3):
                cluster.latency(LATENCY)
                with trio.move_on_after(PHASE_SECONDS):
                    while True:
                        first, late = await cluster.last_sequence(0), await cluster.last_sequence(NODES - 1)
                        lags.append(first - late)
                        await trio.sleep(0.2)
                cluster.latency(0.0)
                await pulse(cluster.nodes[NODES - 1], seconds=3.5 * number)
                await world.flows()
            world.quiet = True
            with trio.fail_after(PATIENCE_SECONDS):
                while any(follower.away for follower in world.clients):
                    await trio.sleep(0.05)
            await world.all_subscribed()
    assert max(lags) > 0, "no copy was ever late"
    resumes = sum(follower.connection - 1 for follower in world.clients)
    report.add(
        "one of three replicas is late, clients resume all the time",
        world,
        resumes=str(resumes),
        events_that_the_replica_was_behind=f"up to {max(lags)}",
    )


async def pulse(node: NatsServer, *, seconds: float) -> None:
    """Stops a node for a while."""
    node.stop()
    await trio.sleep(seconds)
    node.cont()
