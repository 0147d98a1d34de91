"""The broker process itself is killed or stopped, and clients go on with the next one."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.support.client import Client
from tests.faults.support.visitor import Poller
from tests.faults.support.world import PATIENCE_SECONDS, SLACK

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report

UNDER_WAY = 3  # changes of documents when a drain begins


@pytest.mark.fault(15)
async def test_killed_under_load(open_world: OpenWorld, report: Report) -> None:
    """kill -9 of the broker three times: on the next process each client gets what it missed, once."""
    async with open_world(mixed=True, documents=True) as world:
        for _ in range(3):
            await world.flows()
            async with world.outage():
                await world.broker.kill9()
                await world.red()
                await world.broker.start()
        await world.flows()
    report.add("`kill -9` of the broker, three times", world)


@pytest.mark.fault(15)
async def test_embedded_server_goes_with_its_parent(open_world: OpenWorld) -> None:
    """kill -9 of a broker with a nats-server of its own: that ends too, and both come back as they were."""
    async with open_world(mixed=True, documents=True, embedded=True) as world:
        for _ in range(2):
            await world.flows()
            (server,) = world.broker.children()
            async with world.outage():
                await world.broker.kill9()
                assert not server.exists()
                await world.broker.start()
        await world.flows()


@pytest.mark.fault(16)
async def test_stopped_in_order(open_world: OpenWorld) -> None:
    """SIGTERM: `connection.draining`, close 1012, exit 0 in time; what is under way is answered before."""
    async with open_world(
        mixed=True,
        documents=True,
        churning=0,
        drain={"grace_seconds": 10, "reconnects_per_second": 20},
    ) as world:
        await world.flows()
        world.proxy.latency = 0.3  # so that publications are under way for a while
        await world.flows()
        async with world.outage():
            with trio.fail_after(PATIENCE_SECONDS):
                while len(world.books.under_way) < UNDER_WAY:
                    await trio.sleep(0.01)
            under_way = world.books.under_way
            world.broker.signal(signal.SIGTERM)
            with trio.fail_after(10 * SLACK):
                assert await world.broker.exited() == 0
            world.proxy.heal()
            await world.broker.start()
        # A request of its own that comes now is told to go elsewhere; on a connection all goes on.
        assert not [each for each in world.refusals if isinstance(each.follower, Client)]
        for follower in world.clients:
            told = [note.connection for note in follower.notes if note.kind == "connection.draining"]
            if isinstance(follower, Poller):  # one that was between two polls is told nothing
                assert told in ([], [1]), follower.name
            else:
                assert told == [1], follower.name
                assert follower.stays[0].code == 1012, follower.name
        assert [each for each in under_way if each.end and not each.cut_short], "no change was answered"
        assert not world.cut_short, "publications sent before the end began were never answered"
        await world.flows()


@pytest.mark.fault(17)
async def test_killed_between_two_acknowledgements(open_world: OpenWorld) -> None:
    """NATS has stored a client's event and the broker dies before it says so: the retry makes no second."""
    async with open_world(mixed=True, churning=0) as world:
        await world.flows()
        world.proxy.back.shut()
        before = world.ledger.repeated
        publishers = world.random.sample(world.clients, 10)
        async with trio.open_nursery() as nursery:
            for number, follower in enumerate(publishers):
                nursery.start_soon(world.publish, follower, f"orders.once.{number}")
            filters = {"subjects_filter": "events.*.orders.once.*"}
            with trio.fail_after(PATIENCE_SECONDS):
                while True:
                    info = await world.with_nats(lambda nats: nats.api("STREAM.INFO.EVENTS", **filters))
                    if len(info["state"].get("subjects", {})) == len(publishers):
                        break
                    await trio.sleep(0.05)
            async with world.outage():
                await world.broker.kill9()
                await world.red()
                world.proxy.heal()
                await world.broker.start()
        assert world.ledger.repeated >= before + len(publishers)
        await world.flows()


@pytest.mark.fault(23)
async def test_reloads_under_load(open_world: OpenWorld) -> None:
    """Bad files leave the old configuration in force, good ones change it, and nobody loses a connection."""
    async with open_world(mixed=True, churning=0) as world:
        file = world.broker.directory / "broker.toml"
        good = file.read_text()

        def told() -> list[str]:
            lines = world.broker.log.read_text().splitlines()
            events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
            return [event for event in events if event in ("reloaded", "reload_refused")]

        for answers, bad in enumerate(
            ("]", good + "\n[surprise]\n", good.replace("secret_file", "pem_file"), good), 1
        ):
            await world.flows(50)
            file.write_text(bad)
            world.broker.signal(signal.SIGHUP)
            with trio.fail_after(PATIENCE_SECONDS):
                while len(said := told()) < answers:
                    await trio.sleep(0.05)
        assert said == ["reload_refused"] * 3 + ["reloaded"]
        await world.flows(50)
        assert {follower.connection for follower in world.clients} == {1}
