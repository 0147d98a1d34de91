"""Process health for the metrics: event-loop lag, clock jumps, and the contents of the stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.beats import beat, next_beat
from broker.errors import Unavailable
from broker.metrics.statistics import StreamUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker import config
    from broker.actors.intake import Intake
    from broker.bus.base import Bus
    from broker.metrics.meters import Meters
    from broker.subjects import Names

LOOP_SECONDS = 0.5
JUMP_SECONDS = 5.0  # a difference within that time is a jump; less is a gradual correction
STREAM_SECONDS = 5.0
AWAY_SECONDS = 1.0  # until the next attempt
CLOCK_HINT = "this clock decides when tokens expire (see timedatectl); open connections use a monotonic clock"

log = structlog.get_logger()


@attrs.define(eq=False)
class Observer:
    """Measures at intervals, for the metrics. `shares` has the number of messages per tenant in the stream.

    `jumped` is called when this machine's clock has been set. `clock` returns Unix seconds.
    """

    bus: Bus
    names: Names
    meters: Meters
    intake: Intake
    settings: Callable[[], config.Metrics]
    jumped: Callable[[], None]
    clock: Callable[[], float] = time.time
    stream: StreamUsage | None = None  # None: not known at the moment
    shares: Mapping[str, int] = attrs.Factory(dict)

    async def watch_loop(self) -> None:
        """Measure how late a task is woken, and detect jumps of the clock."""
        ahead = self.clock() - trio.current_time()
        while True:
            due = next_beat(LOOP_SECONDS)
            await trio.sleep_until(due)
            now = trio.current_time()
            self.meters.loop_lag.observe(now - due)
            before, ahead = ahead, self.clock() - now
            if abs(ahead - before) > JUMP_SECONDS:
                log.warning("clock_jumped", seconds=round(ahead - before), next=CLOCK_HINT)
                self.jumped()

    async def watch_stream(self) -> None:
        while True:
            try:
                found = await self.bus.usage()
                self.stream = StreamUsage(
                    messages=found.messages,
                    bytes=found.bytes,
                    first=found.first,
                    last=found.last,
                    max_bytes=found.max_bytes,
                    lag=max(0, found.last - self.intake.head),
                )
                await beat(STREAM_SECONDS)
            except Unavailable:
                self.stream = None
                await trio.sleep(AWAY_SECONDS)

    async def count_shares(self) -> None:
        """Count the messages of each tenant."""
        while True:
            try:
                self.shares = await self.bus.tally(f"{self.names.events}.>", token=1)
                await trio.sleep(self.settings().share_seconds)
            except Unavailable:
                await trio.sleep(AWAY_SECONDS)
