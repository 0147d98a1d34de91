"""One of three brokers over one NATS is cut off from it, for longer than anything is waited for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.support.process import BrokerProcess
from tests.faults.support.visitor import Poller
from tests.faults.support.world import LISTS, PATIENCE_SECONDS, TENANTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.follower import Follower
    from tests.faults.support.report import Report
    from tests.faults.support.world import World

CLIENTS = 10  # of each of the other brokers


@asynccontextmanager
async def other_broker(world: World, directory: Path) -> AsyncIterator[BrokerProcess]:
    """One more over the same NATS, with nothing in between, that believes the same tokens."""
    secret = (world.broker.directory / "secret").read_text()
    broker = BrokerProcess(
        directory=directory,
        nats={"urls": [world.nats.url]},
        files={"secret": secret},
        variables=world.broker.variables,
    )
    try:
        await broker.start()
        yield broker
    finally:
        with trio.CancelScope(shield=True):
            await broker.end()


def clients_of(world: World, broker: BrokerProcess) -> list[Follower]:
    found = []
    for number in range(CLIENTS):
        patterns = LISTS[number % len(LISTS)]
        client = world.client(patterns, tenant=TENANTS[number % len(TENANTS)], user=f"v{number}", denied=[])
        client.address = lambda: broker.ws
        found.append(client)
    return found


def sources(client: Follower) -> list[str]:
    return [note.payload["state"] for note in client.notes if note.kind == "source"]


@pytest.mark.fault(33)
async def test_partition_of_one_of_three(
    open_world: OpenWorld, report: Report, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The clients of the one that is cut off are told, those of the others notice nothing; nothing is lost.

    Afterwards the clients of the others move to it with their positions.
    """
    seconds = pytestconfig.getoption("--faults-soak")
    async with open_world(mixed=True, churning=0) as world:
        cut_off = [each for each in world.clients if not isinstance(each, Poller)]
        async with (
            other_broker(world, tmp_path / "second") as second,
            other_broker(world, tmp_path / "third") as third,
        ):
            beside = clients_of(world, second) + clients_of(world, third)
            await world.all_subscribed()
            await world.flows()
            async with world.outage():
                world.proxy.black_hole()
                noticed = await world.red()
                began = trio.current_time()
                with trio.fail_after(PATIENCE_SECONDS):
                    while not all("interrupted" in sources(each) for each in cut_off):
                        await trio.sleep(0.05)
                await world.flows()
                busy = [each for each in beside if {">", "orders.>"} & set(each.patterns)]
                with trio.fail_after(PATIENCE_SECONDS):
                    while not all(world.first_since(each, began) for each in busy):
                        await trio.sleep(0.05)
                await trio.sleep(seconds)  # it is not noticed and mended at once: that is the fault
                world.proxy.heal()
            assert {each.connection for each in cut_off} == {1}
            assert all(sources(each)[-1] == "restored" for each in cut_off)
            assert {each.connection for each in beside} == {1}
            assert not any(sources(each) for each in beside)
            for each in beside:
                each.address = world.address
        await world.all_subscribed()
        await world.flows()
    report.add(
        f"one of three brokers cut off from NATS for {seconds:.0f} s",
        world,
        noticed=f"{noticed:.1f} s",
    )
