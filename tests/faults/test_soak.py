"""Everything together, in an order that only the seed knows."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.support.world import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.faults.support.world import World

GROWTH = 16 * 1024 * 1024  # from the first half to the second: rings and caches, which are still filling


async def kill_nats(world: World) -> None:
    async with world.outage():
        await world.nats.kill9()
        await world.red()
        await world.nats.start()


async def stop_nats_in_order(world: World) -> None:
    async with world.outage():
        await world.nats.term()
        await world.red()
        await world.nats.start()


async def stand_still(world: World) -> None:
    world.nats.stop()
    await trio.sleep(world.random.uniform(0.2, 3))
    world.nats.cont()
    await world.recovered()


async def cut_off(world: World) -> None:
    world.proxy.reset()
    await world.recovered()


async def black_hole(world: World) -> None:
    world.proxy.black_hole()
    await trio.sleep(world.random.uniform(0.2, 3))
    world.proxy.heal()
    await world.recovered()


async def slow(world: World) -> None:
    world.proxy.latency, world.front.slices = world.random.uniform(0, 0.2), 32
    await world.flows(50)
    world.proxy.heal()
    world.front.heal()
    await world.recovered()


async def delete_consumer(world: World) -> None:
    names = (await world.with_nats(lambda nats: nats.api("CONSUMER.NAMES.EVENTS")))["consumers"]
    for name in names:
        await world.with_nats(lambda nats, name=name: nats.api(f"CONSUMER.DELETE.EVENTS.{name}"))
    await world.recovered()


async def drop_clients(world: World) -> None:
    world.front.reset()
    await world.all_subscribed()


async def send_clients_away(world: World) -> None:
    away = world.random.sample(world.clients, 20)
    for follower in away:
        follower.go_away()
    await world.flows(100)
    for follower in away:
        follower.away = False
    await world.all_subscribed()


async def stop_reading(world: World) -> None:
    asleep = world.random.sample(world.clients, 5)
    for follower in asleep:
        follower.stop_reading()
    await world.flows(100)
    for follower in asleep:
        follower.read_again()
    await world.all_subscribed()


async def burst(world: World) -> None:
    world.burst(500)
    await world.until_burst_is_out()
    await world.recovered()


async def stop_broker(world: World) -> None:
    world.broker.stop()
    await trio.sleep(world.random.uniform(0.2, 2))
    world.broker.cont()
    await world.recovered()


FAULTS = (
    kill_nats,
    stop_nats_in_order,
    stand_still,
    cut_off,
    black_hole,
    slow,
    delete_consumer,
    drop_clients,
    send_clients_away,
    stop_reading,
    burst,
    stop_broker,
)


@pytest.mark.fault(26)
async def test_soak(open_world: OpenWorld, report: Report, pytestconfig: pytest.Config) -> None:
    """One fault after the other, at random: nothing is lost, and the memory comes to rest."""
    seconds = pytestconfig.getoption("--faults-soak")
    memory: list[int] = []
    done = 0
    async with open_world(mixed=True, rate=20.0, ring={"events": 1024}) as world:
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            with trio.fail_after(PATIENCE_SECONDS):
                await world.random.choice(FAULTS)(world)
                await world.flows(world.random.randrange(20, 100))
            done += 1
            memory.append((await world.broker.held()).memory)
    half = len(memory) // 2
    growth = int(statistics.median(memory[half:]) - statistics.median(memory[: half or 1]))
    assert growth < GROWTH, memory
    report.add(
        f"{done} random faults in {seconds:.0f} s",
        world,
        memory_grew_by=f"{growth >> 10} KiB from half to half",
    )
