"""The store of nats-server comes back with less than it had, and what is deleted on purpose under load."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.support.world import PATIENCE_SECONDS, POLL_SECONDS, SLACK
from tests.support import damage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats

FORGOTTEN_SECONDS = 2.0
BUSY = 3  # times as long on a machine that is, before everybody comes back and nothing of it may be given
ROUNDS = 12


def shorten(directory: Path) -> None:
    """The index is there, and speaks of more than the blocks hold."""
    newest = damage.blocks(directory)[-1]
    with newest.open("r+b") as file:
        file.truncate(int(newest.stat().st_size * 0.6))


def lose_everything(directory: Path) -> None:
    """Of the messages no block is left; the bucket with the generation is gone as well."""
    for block in damage.blocks(directory):
        block.unlink()
    damage.forget_bucket(directory)


def yesterday_without_bucket(directory: Path) -> None:
    damage.restore_copy(directory)
    damage.forget_bucket(directory)


HARMS = [
    damage.truncate,
    damage.flip_bits,
    shorten,
    damage.forget_index,
    damage.restore_copy,
    yesterday_without_bucket,
    lose_everything,
]


@pytest.mark.fault(27)
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
async def test_store_damaged(open_world: OpenWorld, report: Report, harm: Callable[[Path], None]) -> None:
    """Three times over, under a broker that runs: what is gone is announced to who has not got it."""
    async with open_world(mixed=True, churning=20) as world:
        world.trims = world.forgets = True
        await world.flows(100)
        await world.nats.term()
        damage.keep_copy(world.nats.directory)
        await world.nats.start()
        for _ in range(3):
            await world.flows(200)
            async with world.outage():
                await world.nats.term()
                harm(world.nats.directory)
                await world.red()
                await world.nats.start()
        await world.flows(100)
    report.add(f"the store damaged: {harm.__name__}", world)


@pytest.mark.fault(27)
@pytest.mark.parametrize("harm", [damage.truncate, damage.restore_copy], ids=lambda harm: harm.__name__)
async def test_embedded_store_damaged(open_world: OpenWorld, harm: Callable[[Path], None]) -> None:
    """Between two lives of a broker with a nats-server of its own: the data directory knows."""
    async with open_world(mixed=True, embedded=True, churning=20) as world:
        world.trims = world.forgets = True
        directory = world.broker.directory / "state" / "nats"
        for life in range(3):
            await world.flows(150)
            await kept(world, [entry.sequence for entry in world.ledger.stored.values()][-1])
            await world.broker.kill9()
            if life:
                harm(directory)
            else:
                damage.keep_copy(directory)
            await world.broker.start()
            await world.all_subscribed()
        await world.flows(100)


async def kept(world: World, sequence: int) -> None:
    """Waits until the data directory knows of an event."""
    file = world.broker.directory / "state" / "stream.json"
    with trio.fail_after(PATIENCE_SECONDS):
        while not file.exists() or json.loads(file.read_text())["sequence"] < sequence:
            await trio.sleep(POLL_SECONDS)


async def purge(world: World, client: RawNats) -> list[int]:
    """Everything of one channel."""
    subject = world.random.choice([entry.subject for entry in world.ledger.stored.values()])
    gone = [entry.sequence for entry in world.ledger.stored.values() if entry.subject == subject]
    await client.api("STREAM.PURGE.EVENTS", filter=subject)
    return gone


async def purge_but_some(world: World, client: RawNats) -> list[int]:
    """The oldest."""
    last = (await client.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
    keep = world.random.randrange(20, 200)
    await client.api("STREAM.PURGE.EVENTS", seq=last - keep)
    return [entry.sequence for entry in world.ledger.stored.values() if entry.sequence < last - keep]


async def delete(world: World, client: RawNats) -> list[int]:
    """Single ones, of the newest."""
    newest = [entry.sequence for entry in world.ledger.stored.values()][-100:]
    gone = world.random.sample(newest, 10)
    for sequence in gone:
        await client.api("STREAM.MSG.DELETE.EVENTS", seq=sequence, no_erase=True)
    return gone


@pytest.mark.fault(32)
async def test_deleted_under_load(open_world: OpenWorld, report: Report) -> None:
    """Channels purged, messages deleted, times to live over: two seconds later nothing of it is given."""
    async with open_world(mixed=True, churning=25) as world:
        world.trims = True
        gone: dict[int, float] = {}
        over = trio.Event()

        async def expiring(client: RawNats) -> None:
            """Events with a time to live of a second; NATS may take a second more."""
            header = b"NATS/1.0\r\nNats-TTL: 1s\r\n\r\n"
            while not over.is_set():
                subject = world.subject("acme", world.random)
                identity = world.ledger.new(subject)
                sequence = await client.store(subject, b'{"n":"%b"}' % identity.encode(), header=header)
                world.ledger.acknowledged(identity, sequence)
                gone[sequence] = trio.current_time() + 2.0
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.with_nats, expiring))
            for number in range(ROUNDS):
                await world.flows(80)
                how = (purge, delete, purge_but_some)[number % 3]
                found = await world.with_nats(partial(how, world))
                gone.update(dict.fromkeys(found, trio.current_time()))
            over.set()
        await world.flows(50)
        until = max(gone.values()) + FORGOTTEN_SECONDS * BUSY
        await trio.sleep_until(until)
        forgotten = trio.current_time()
        for follower in world.clients:
            follower.cut()
        await world.flows(50)
    for follower in world.clients:
        for event in follower.events:
            if event.sequence in gone:
                assert event.at <= forgotten, (follower.name, event)
                assert event.at <= gone[event.sequence] + FORGOTTEN_SECONDS * SLACK, (follower.name, event)
    report.add("purged, deleted and expired under load", world)
