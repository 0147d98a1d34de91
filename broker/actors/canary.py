"""Whether an event can travel: `/readyz` says just that, and the watchdog is fed by it.

A *canary* is stored in a stream of our own every 2 s and comes back when that has it. The stream of the
events, which is not ours to write into, is asked whether it takes events, and the feed of it gives a sign
each second.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.errors import Unavailable
from broker.metrics.meters import Meters
from broker.parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus
    from broker.subjects import Names

EVERY_SECONDS = 2.0
LATE_SECONDS = 10.0
ON_THEIR_WAY = 16  # canaries that are waited for; what comes later than that is not measured
BACK = "seen."  # under which canaries come back

log = structlog.get_logger()


@attrs.define(eq=False)
class Canary(Part):
    """`broker` names this process.

    `alive` is called whenever a canary has come back while the feed is heard, and whenever NATS has refused
    one or is away: then we do what we can, and to be started anew would not help. It is not while canaries
    are stored and do not come back, or while the feed is silent.
    """

    bus: Bus
    names: Names
    broker: str
    alive: Callable[[], None]
    meters: Meters = attrs.Factory(Meters)
    numbers: count[int] = attrs.Factory(count)
    sent: dict[bytes, float] = attrs.Factory(dict)  # when, by what is in them
    seen: float | None = None
    listening: bool = False
    fault: str = "NATS has not been reached yet"
    closed: str | None = "it was not asked yet whether the stream takes events"  # why it does not

    channel = BACK

    def down(self) -> None:
        self.fault = "the connection was lost"

    def heard(self, channel: str, body: bytes) -> None:
        """A canary came back."""
        if channel == BACK + self.broker:
            self.seen = trio.current_time()
            if (sent := self.sent.pop(body, None)) is not None:
                self.meters.canary.observe(self.seen - sent)
            if self.deaf() is None:
                self.alive()

    def trouble(self) -> str | None:
        """Why no event can travel; None while one can."""
        if self.seen is None:
            return self.fault
        if (late := trio.current_time() - self.seen) >= LATE_SECONDS:
            return f"no canary for {late:.0f} s: {self.fault}"
        return self.closed or self.deaf()

    def deaf(self) -> str | None:
        """That the feed of events is silent, if it is."""
        heard = self.bus.heard
        silence = 0.0 if heard is None else trio.current_time() - heard
        return None if silence < LATE_SECONDS else f"the feed of events has been silent for {silence:.0f} s"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fly)
            nursery.start_soon(self.ask)

    async def fly(self) -> None:
        """Sends canaries, for ever."""
        while True:
            try:
                await self.send()
                self.fault = "it was stored, but has not come back"
            except Unavailable as error:
                self.fault = error.message
                self.alive()
            await trio.sleep(EVERY_SECONDS if self.seen else EVERY_SECONDS / 20)

    async def send(self) -> None:
        if not self.listening:
            await self.bus.subscribe_live(f"{self.names.own}.{BACK}{self.broker}")
            self.listening = True  # from now on, whatever becomes of the connection
        body = str(next(self.numbers)).encode()
        while len(self.sent) >= ON_THEIR_WAY:
            del self.sent[next(iter(self.sent))]
        began = self.sent[body] = trio.current_time()
        await self.bus.publish(f"{self.names.own}.canary.{self.broker}", body)
        self.meters.round_trip.observe(trio.current_time() - began)

    async def ask(self) -> None:
        """Asks the stream of the events, for ever."""
        pause = EVERY_SECONDS / 20
        while True:
            try:
                await self.bus.probe()
                self.closed, pause = None, EVERY_SECONDS
            except Unavailable as error:
                self.closed = error.message
            await trio.sleep(pause)

    def age(self) -> float | None:
        """For how many seconds none has come; None before the first one."""
        return None if self.seen is None else trio.current_time() - self.seen
