"""What happens to NATS: it is killed, stopped, cut off; its streams and consumers go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.support.world import SLACK

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report


@pytest.mark.fault(1)
async def test_killed_again_and_again(open_world: OpenWorld, report: Report) -> None:
    """kill -9 and restart five times under load: nothing acknowledged is lost, and delivery is back in 2 s."""
    async with open_world() as world:
        for _ in range(5):
            await world.flows()
            async with world.outage():
                await world.nats.kill9()
                await world.red()
                await world.nats.start()
        assert max(world.recoveries) < 2 * SLACK
    report.add("`kill -9` of nats-server, five times", world)
