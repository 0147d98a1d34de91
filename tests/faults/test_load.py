"""More than there is room for: narrow queues, a burst while the broker stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld


@pytest.mark.fault(10)
async def test_narrow_queues(open_world: OpenWorld) -> None:
    """Ten records are all that may wait between NATS and the broker: late, but without a silent hole."""
    async with open_world(mixed=True, variables={"FAULTS_HELD": "10"}) as world:
        for _ in range(3):
            await world.flows()
            world.burst(600)
            await world.until_burst_is_out()


@pytest.mark.fault(11)
async def test_blocked_during_a_burst(open_world: OpenWorld) -> None:
    """The broker stands still for 5 s while 100 MB come: stored channels are complete, live loss is told."""
    async with open_world(mixed=True) as world:
        await world.flows()
        world.broker.stop()
        world.burst(20_000, padding=10_000)
        with trio.move_on_after(5):
            await world.until_burst_is_out()
            await trio.sleep_forever()
        world.broker.cont()
        await world.until_burst_is_out()
        await world.flows()
