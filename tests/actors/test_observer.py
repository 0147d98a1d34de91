"""The observer notices that the machine's clock was set, and by how much."""

from __future__ import annotations

import random
from typing import Any

import trio
from structlog.testing import capture_logs

from broker import config
from broker.actors.observer import LOOP_SECONDS, Observer
from broker.metrics.meters import Meters
from broker.subjects import Names
from tests.support.scripted_bus import ScriptedBus

HOUR = 3600.0


class Jumps(list[float]):
    """The clock of a machine: `offset` is what it was set by."""

    offset = 0.0

    def now(self) -> float:
        return 1e9 + trio.current_time() + self.offset

    def jumped(self) -> None:
        self.append(self.offset)


async def test_jumps_of_the_clock(autojump_clock: trio.abc.Clock) -> None:
    """Each jump, forwards and back, is said once; what a time server corrects is none."""
    clock = Jumps()
    bus = ScriptedBus(random=random.Random(1))
    intake: Any = None  # the loop and the clock alone are looked at
    observer = Observer(bus, Names(), Meters(), intake, config.Metrics, clock.jumped, clock.now)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(observer.watch_loop)
            for step in (3 * HOUR, -3 * HOUR, -3 * HOUR, 6.0, 2.0, -1.0, 3 * HOUR):
                await trio.sleep(10 * LOOP_SECONDS)
                clock.offset += step
            await trio.sleep(10 * LOOP_SECONDS)
            nursery.cancel_scope.cancel()
    said = [each["seconds"] for each in logs if each["event"] == "clock_jumped"]
    assert said == [3 * HOUR, -3 * HOUR, -3 * HOUR, 6, 3 * HOUR]
    assert len(clock) == len(said)
