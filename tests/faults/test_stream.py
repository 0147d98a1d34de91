"""The stream loses what it held: purged, trimmed, made anew, or its disk is full."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.support.disk import Disk, small_disk
from tests.faults.support.world import PATIENCE_SECONDS, POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.follower import Follower
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats


def reasons(follower: Follower) -> set[str]:
    return {note.payload["reason"] for note in follower.notes if note.kind == "gap"}


def stored(world: World) -> list[Follower]:
    """The clients that follow stored channels."""
    return [each for each in world.clients if not all(one.startswith("live.") for one in each.patterns)]


@pytest.mark.fault(8)
async def test_purged_unread(open_world: OpenWorld, report: Report) -> None:
    """What was purged before the broker could read it is announced to everybody who is connected."""
    async with open_world(mixed=True, churning=0) as world:
        world.trims = True
        await world.flows()
        async with world.outage():
            world.proxy.down = True
            world.proxy.reset()
            await world.red()
            await world.flows(300)
            await world.with_nats(lambda nats: nats.api("STREAM.PURGE.EVENTS"))
            await world.flows(50)
            world.proxy.heal()
        with trio.fail_after(PATIENCE_SECONDS):
            for follower in stored(world):
                while "trimmed" not in reasons(follower):
                    await trio.sleep(POLL_SECONDS)
    report.add("stream purged while the broker was cut off", world)


@pytest.mark.fault(8)
async def test_purged_again_and_again(open_world: OpenWorld) -> None:
    """Purges under load while clients come and go: whoever misses something is told."""
    async with open_world(mixed=True, churning=20, ring={"events": 64, "seconds": 1}) as world:
        world.trims = True
        for _ in range(20):
            await world.flows(40)
            kept = world.random.randrange(30)
            await world.with_nats(lambda nats, kept=kept: nats.api("STREAM.PURGE.EVENTS", keep=kept))


async def make_anew(stream: str, by: str, nats: RawNats) -> None:
    settings = (await nats.api(f"STREAM.INFO.{stream}"))["config"]
    await nats.api(f"STREAM.DELETE.{stream}")
    if by == "somebody else":
        await nats.api(f"STREAM.CREATE.{stream}", **settings)


@pytest.mark.fault(8)
@pytest.mark.parametrize("by", ["us", "somebody else"])
async def test_made_anew(open_world: OpenWorld, report: Report, by: str) -> None:
    """A stream that is deleted and made again is another one: `reset`, and then all that it holds."""
    async with open_world(mixed=True, documents=True) as world:
        world.trims = True
        await world.flows()
        for stream in ("STATE", "EVENTS"):
            await world.with_nats(partial(make_anew, stream, by))
        await world.recovered()
        await world.flows()
        for follower in stored(world):
            assert "reset" in reasons(follower), follower.name
    report.add(f"stream deleted, made again by {by}", world)


@pytest.mark.fault(8)
async def test_missing_at_the_start(open_world: OpenWorld) -> None:
    """A broker that starts without its stream makes it, and answers positions of the old one with `reset`."""
    async with open_world(mixed=True, documents=True) as world:
        world.trims = True
        await world.flows()
        await world.broker.kill9()
        for stream in ("STATE", "EVENTS"):
            await world.with_nats(lambda nats, of=stream: nats.api(f"STREAM.DELETE.{of}"))
        await world.broker.start()
        await world.all_subscribed()
        await world.flows()
        for follower in stored(world):
            assert "reset" in reasons(follower), follower.name
            assert False in recovered(follower), follower.name


@pytest.mark.fault(9)
async def test_trimmed_while_away(open_world: OpenWorld) -> None:
    """A client whose position has been cut off the stream learns so, and gets what is left.

    A session of polls may just have gone on, with all that it needs in its hands; it is held to what
    everybody is: what it lacks has been announced.
    """
    async with open_world(mixed=True, ring={"events": 64, "seconds": 1}) as world:
        world.trims = True
        away = world.random.sample(stored(world), 20)
        await world.flows(100)
        before = {follower: follower.connection for follower in away}
        for follower in away:
            follower.go_away()
        await world.flows(400)
        await world.with_nats(lambda nats: nats.api("STREAM.PURGE.EVENTS", keep=150))
        await world.flows(200)
        for follower in away:
            follower.away = False
        await world.all_subscribed()
        back = [follower for follower in away if follower.connection != before[follower]]
        assert back
        for follower in back:
            assert "trimmed" in reasons(follower), follower.describe()
            assert False in recovered(follower), follower.describe()


def recovered(follower: Follower) -> list[bool]:
    return [note.payload["recovered"] for note in follower.notes if note.kind == "subscribed"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk for the store of nats-server."""
    with small_disk(tmp_path / "disk", 32 << 20) as found:
        if found is None:
            pytest.skip("this system does not let us mount a file system in a namespace of our own")
        yield found


@pytest.mark.fault(14)
async def test_disk_full(open_world: OpenWorld, disk: Disk) -> None:
    """Nothing can be stored: who publishes is told, who reads goes on, `/readyz` is red until it is mended.

    nats-server gives up a stream that it could not write, until it is started again.
    """
    async with open_world(
        mixed=True,
        documents=True,
        prefix=disk.prefix,
        jetstream={"store_dir": str(disk.place), "max_file_store": 1 << 30},
        ring={"events": 64, "seconds": 1},
    ) as world:
        await world.flows(600)
        async with world.outage():
            disk.fill()
            await world.red()
            assert {each.code for each in world.refusals} == {"unavailable"}
            for follower in world.clients:
                follower.cut()
            away = world.client([">"], tenant="acme", user="reader", denied=[], start={"last": 200})
            await world.all_subscribed()
            disk.free()
            await world.nats.term()
            await world.nats.start()
        assert len(away.events) >= 200
        await world.flows()


@pytest.mark.fault(14)
async def test_store_read_only(open_world: OpenWorld, disk: Disk) -> None:
    """nats-server does not even start: the clients keep their connections until it does."""
    async with open_world(
        mixed=True,
        documents=True,
        churning=0,
        prefix=disk.prefix,
        jetstream={"store_dir": str(disk.place), "max_file_store": 1 << 30},
    ) as world:
        await world.flows()
        async with world.outage():
            await world.nats.term()
            disk.remount("ro")
            with pytest.raises(AssertionError):
                await world.nats.start()
            await world.red()
            disk.remount("rw")
            await world.nats.start()
        assert {follower.connection for follower in world.clients} == {1}
        await world.flows()
