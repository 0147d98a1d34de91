"""Too many from one place, and a tenant that is not let in any more, while the others go on."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import tomlkit
import trio

from tests.faults.support.rude import TOO_LATE, Row, bad_input, listen, listen_on, pour, until
from tests.faults.support.world import PATIENCE_SECONDS, SLACK
from tests.support.raw import say
from tests.web.harness import Client, head
from tests.web.test_heads import GOOD

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.rude import Told

ELSEWHERE = "127.0.0.2"  # another address than the world's
STORM_RATE, STORM_SECONDS = 500, 3
CONNECTIONS, CONNECTS = 120, 150
SUSPENDED, MEMBERS = "outcast", 20
SUSPENSION_SECONDS = 1.0 * SLACK


@pytest.mark.fault("http")
async def test_storm_from_one_address(open_world: OpenWorld) -> None:
    """500 connects a second: as many as its limits allow get in, the others 429; nobody else is refused."""
    address = {"connections": CONNECTIONS, "connects_per_second": CONNECTS}
    async with open_world(churning=0, limits={"address": address}) as world, bad_input(world) as row:
        statuses = Counter[int]()
        limits = Counter[str]()

        async def come(number: int) -> None:
            await trio.sleep(number / STORM_RATE)
            parts = urlsplit(row.url)
            try:
                stream = await trio.open_tcp_stream(
                    parts.hostname or "", parts.port or 0, local_address=ELSEWHERE
                )
            except OSError:  # cut before the connect was through on our side
                statuses[0] += 1
                return
            async with stream:
                client = Client(stream)
                await pour(client, GOOD)
                told = await listen(client, stay=False)
                statuses[told.status] += 1
                if told.status == 429:
                    assert int(told.headers["retry-after"]) >= 1
                    limits["connects_per_second" if b"connects" in told.body else "connections"] += 1
                await trio.sleep(number % 2)

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(STORM_RATE * STORM_SECONDS):
                    nursery.start_soon(come, number)
                await row.works("a storm from elsewhere, while it goes on")
        assert {101, 429} <= statuses.keys() <= {101, 429, *TOO_LATE}
        assert statuses.total() == STORM_RATE * STORM_SECONDS
        # By which of the two depends on how fast the machine is.
        assert set() < limits.keys() <= {"connects_per_second", "connections"}
        await row.alone()
        await row.works("a storm from elsewhere")


@pytest.mark.fault(23)
async def test_tenant_suspended(open_world: OpenWorld) -> None:
    """On reload the clients of a suspended tenant are closed with 4501 within a second, and no other."""
    async with open_world(churning=0) as world, bad_input(world) as row, trio.open_nursery() as nursery:
        told: list[tuple[float, Told]] = []

        async def member(number: int, *, task_status: trio.TaskStatus[None]) -> None:
            async with row.member(f"u{number}", SUSPENDED) as client:
                await say(client, "subscribe", {"channel": ">"})
                await until(client, "subscribed")
                task_status.started()
                answer = await listen_on(client)
                told.append((trio.current_time(), answer))

        for number in range(MEMBERS):
            await nursery.start(member, number)
        await world.flows()
        file = world.broker.directory / "broker.toml"
        document = tomlkit.parse(file.read_text())
        document["limits"]["tenants"] = [{"name": SUSPENDED, "suspended": True}]
        file.write_text(tomlkit.dumps(document))
        began = trio.current_time()
        world.broker.signal(signal.SIGHUP)
        with trio.fail_after(PATIENCE_SECONDS):
            while len(told) < MEMBERS:
                await trio.sleep(0.01)
        assert {(each.errors, each.close) for _, each in told} == {(("token_revoked",), 4501)}
        assert max(at for at, _ in told) - began < SUSPENSION_SECONDS
        await refused(row)
        await world.flows()
        await row.works("a tenant suspended")


async def refused(row: Row) -> None:
    """Who comes back is let in no more."""
    told = await row.told(head(authorization=row.bearer("u0", SUSPENDED)))
    assert (told.errors, told.close) == (("token_revoked",), 4501)
