"""What nobody sees who only does his work: how late the loop is, and how much the stream holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

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
STREAM_SECONDS = 5.0
AWAY_SECONDS = 1.0  # before the next try


@attrs.define(eq=False)
class Observer:
    """Looks now and then, for the metrics. `shares` has the messages of each tenant in the stream."""

    bus: Bus
    names: Names
    meters: Meters
    intake: Intake
    settings: Callable[[], config.Metrics]
    stream: StreamUsage | None = None  # None: not known just now
    shares: Mapping[str, int] = attrs.Factory(dict)

    async def watch_loop(self) -> None:
        """Measures how late a task wakes up that wants to at a certain time."""
        while True:
            due = trio.current_time() + LOOP_SECONDS
            await trio.sleep_until(due)
            self.meters.loop_lag.observe(trio.current_time() - due)

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
                await trio.sleep(STREAM_SECONDS)
            except Unavailable:
                self.stream = None
                await trio.sleep(AWAY_SECONDS)

    async def count_shares(self) -> None:
        """Counts the messages of each tenant."""
        while True:
            try:
                self.shares = await self.bus.tally(f"{self.names.events}.>", token=1)
                await trio.sleep(self.settings().share_seconds)
            except Unavailable:
                await trio.sleep(AWAY_SECONDS)
