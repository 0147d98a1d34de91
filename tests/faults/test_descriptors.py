"""The last file descriptors, and the last bytes of a disk: health and admin answer, and all comes back."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio

from tests.faults.support.disk import small_disk
from tests.faults.support.http import get
from tests.faults.support.world import PATIENCE_SECONDS, POLL_SECONDS
from tests.support.http import request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.disk import Disk
    from tests.faults.support.world import World

FILES = 240  # that the broker may have open
CROWD = 300  # connections that somebody tries to have
KINDS = b"HTTP/1.1 200", b"HTTP/1.1 503", b""  # of answers: the last is a cut


async def crowd(world: World, stack: AsyncExitStack, ask: bytes) -> list[bytes]:
    """Connections that are held open; the beginnings of the answers."""
    answers = []
    port = urlsplit(world.broker.ws or "").port or 1
    for _ in range(CROWD):
        stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        with suppress(trio.BrokenResourceError):
            if ask:
                await stream.send_all(ask)
                with trio.move_on_after(5):
                    answers.append(bytes(await stream.receive_some(12)))
    return answers


async def answers(world: World, *, public: bool) -> None:
    """The admin port at once; the public one tells its health as soon as those who were refused have gone."""
    for path in ("/healthz", "/metrics"):
        assert (await get(world.broker.admin or "", path))[0] == 200, path
    http = f"http://{urlsplit(world.broker.ws or '').netloc}"
    with trio.fail_after(PATIENCE_SECONDS):
        while public and (await get(http, "/healthz"))[0] != 200:
            await trio.sleep(POLL_SECONDS)


def told(world: World, event: str) -> int:
    return world.broker.log.read_text().count(f'"event": "{event}"')


@pytest.mark.fault(29)
async def test_no_descriptors_left(open_world: OpenWorld) -> None:
    """A crowd takes all there are, first of clients, then of links that say nothing; NATS is restarted."""
    async with open_world(
        churning=0,
        variables={"FAULTS_FILES": str(FILES)},
        limits={"connections_per_user": 1000, "heartbeat_seconds": 2},
    ) as world:
        await world.flows()
        assert told(world, "descriptors_few") == 1  # 10,000 connections are more than that
        token = world.broker.token("initech", "crowd", subscribe=["nothing"])
        async with AsyncExitStack() as stack:
            found = await crowd(
                world, stack, request(world.broker.ws or "", "GET", "/sse?channel=nothing", token=token)
            )
            assert {*KINDS[:2]} <= {*found} <= {*KINDS}
            await answers(world, public=True)
            async with world.outage():
                await world.nats.kill9()
                await world.red()
                await answers(world, public=True)
                await world.nats.start()
            await answers(world, public=True)
        async with AsyncExitStack() as stack:
            await crowd(world, stack, b"")
            with trio.fail_after(PATIENCE_SECONDS):  # they are in a queue until they are accepted
                while len(os.listdir(f"/proc/{world.broker.pid}/fd")) <= FILES * 0.8:
                    await trio.sleep(POLL_SECONDS)
            await answers(world, public=False)
            async with world.outage():
                await world.nats.kill9()
                await world.red()
                await world.nats.start()
            await answers(world, public=False)
        await world.flows()
        assert 1 <= told(world, "descriptors_short") <= 3
        assert 1 <= told(world, "accept_failed") <= 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 64 << 20) as made:
        if made is None:
            pytest.skip("this system does not let us mount a file system in a namespace of our own")
        (made.inside / "state").mkdir(mode=0o700)
        yield made


async def kill_server(world: World) -> None:
    """The broker's own nats-server, as soon as there is one, until it is gone."""
    children = Path(f"/proc/{world.broker.pid}/task/{world.broker.pid}/children")
    with trio.fail_after(PATIENCE_SECONDS):
        while not (found := children.read_text().split()):
            await trio.sleep(POLL_SECONDS)
        os.kill(int(found[0]), signal.SIGKILL)
        while Path(f"/proc/{found[0]}").exists():
            await trio.sleep(POLL_SECONDS)


@pytest.mark.fault(29)
async def test_a_full_disk_under_the_embedded_server(open_world: OpenWorld, disk: Disk) -> None:
    """It is killed while nothing can be written: the broker answers, and goes on when there is room."""
    async with open_world(
        embedded=True,
        churning=0,
        broker_prefix=disk.prefix,
        state=disk.inside / "state",
        stream={"max_bytes": "16MiB", "deadletter_max_bytes": "1MiB"},
        audit={"max_bytes": "1MiB"},
    ) as world:
        await world.flows()
        async with world.outage():
            disk.fill()
            for _ in range(3):
                await kill_server(world)
                await answers(world, public=True)
            await world.red()
            disk.free()
            await kill_server(world)  # one that was started without room has given up its streams
        await world.flows()
