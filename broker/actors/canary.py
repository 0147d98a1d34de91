"""The canary: whether an event can travel. It decides `/readyz`, and feeds the watchdog.

A *canary* is stored in a stream of the broker's own every 2 s, and comes back once it is stored. The events
stream, into which the broker may not write, is asked whether it accepts messages, and its feed gives a sign
of life each second.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.beats import beat
from broker.errors import Unavailable
from broker.metrics.meters import Meters
from broker.parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus
    from broker.subjects import Names

EVERY_SECONDS = 2.0
LATE_SECONDS = 10.0
ON_THEIR_WAY = 16  # canaries awaited at a time; a later return is not measured
BACK = "seen."  # the channel on which canaries come back

log = structlog.get_logger()


@attrs.define(eq=False)
class Canary(Part):
    """Sends canaries. `broker` names this process.

    `alive` is called whenever a canary comes back while the feed is heard, and whenever NATS refuses one or
    is away: then the broker does all it can, and a restart would not help. It is not called while canaries
    are stored and do not come back, or while the feed is silent.
    """

    bus: Bus
    names: Names
    broker: str
    alive: Callable[[], None]
    meters: Meters = attrs.Factory(Meters)
    numbers: count[int] = attrs.Factory(count)
    sent: dict[bytes, float] = attrs.Factory(dict)  # the time of sending, by body
    seen: float | None = None
    listening: bool = False
    fault: str = "NATS has not been reached yet"
    closed: str | None = "the stream has not confirmed yet that it accepts messages"  # why it does not

    channel = BACK

    def down(self) -> None:
        self.fault = "the connection was lost"

    def heard(self, channel: str, body: bytes) -> None:
        """Note that a canary has come back."""
        if channel == BACK + self.broker:
            self.seen = trio.current_time()
            if (sent := self.sent.pop(body, None)) is not None:
                self.meters.canary.observe(self.seen - sent)
            if self.deaf() is None:
                self.alive()

    def trouble(self) -> str | None:
        """Return why no event can travel; None while one can."""
        if self.seen is None:
            return self.fault
        if (late := trio.current_time() - self.seen) >= LATE_SECONDS:
            return f"no canary for {late:.0f} s: {self.fault}"
        return self.closed or self.deaf()

    def deaf(self) -> str | None:
        """Return that the feed of events is silent; None if it is not."""
        heard = self.bus.heard
        silence = 0.0 if heard is None else trio.current_time() - heard
        return None if silence < LATE_SECONDS else f"the feed of events has been silent for {silence:.0f} s"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fly)
            nursery.start_soon(self.ask)

    async def fly(self) -> None:
        """Send canaries, until cancelled."""
        while True:
            try:
                await self.send()
                self.fault = "it was stored, but has not come back"
            except Unavailable as error:
                self.fault = error.message
                self.alive()
            await beat(EVERY_SECONDS if self.seen else EVERY_SECONDS / 20)

    async def send(self) -> None:
        if not self.listening:
            await self.bus.subscribe_live(f"{self.names.own}.{BACK}{self.broker}")
            self.listening = True  # from now on, also over reconnects
        body = str(next(self.numbers)).encode()
        while len(self.sent) >= ON_THEIR_WAY:
            del self.sent[next(iter(self.sent))]
        began = self.sent[body] = trio.current_time()
        await self.bus.publish(f"{self.names.own}.canary.{self.broker}", body)
        self.meters.round_trip.observe(trio.current_time() - began)

    async def ask(self) -> None:
        """Ask the events stream whether it accepts messages, until cancelled."""
        pause = EVERY_SECONDS / 20
        while True:
            try:
                await self.bus.probe()
                self.closed, pause = None, EVERY_SECONDS
            except Unavailable as error:
                self.closed = error.message
            await beat(pause)

    def age(self) -> float | None:
        """Return the seconds since the last canary came back; None before the first one."""
        return None if self.seen is None else trio.current_time() - self.seen
