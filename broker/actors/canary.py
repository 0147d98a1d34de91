"""The canary: a message that travels publish → stream → feed, over and over.

While it arrives, an event can arrive; `/readyz` says just that. The stream lets go of it soon (`Nats-TTL`,
ADR-43), so that it leaves no history. Its subject is the broker's own tenant, which no client can have.

Beside it lie *anchors*, a few for each `max_age`, which stay that long. Canaries that go would let the
first sequence of a quiet stream run ahead, as if events had been cut off; the oldest anchor holds it
in place, so that a first sequence above a client's position means what it says.
"""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.errors import Unavailable
from broker.metrics.meters import Meters

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus

EVERY_SECONDS = 2.0
LATE_SECONDS = 10.0
KEPT = "30s"
ANCHORS = 16  # for each `max_age`
ON_THEIR_WAY = 16  # canaries that are waited for; what comes later than that is not measured


log = structlog.get_logger()


@attrs.define(eq=False)
class Canary:
    """`broker` names this process; `max_age` is the stream's, in seconds (0: kept for ever).

    `alive` is called whenever a canary has come back, and whenever NATS has refused one or is away: then we
    do what we can, and to be started anew would not help. It is not while canaries are stored and do not
    come back.
    """

    bus: Bus
    names: subjects.Names
    broker: str
    max_age: float
    alive: Callable[[], None]
    meters: Meters = attrs.Factory(Meters)
    numbers: count[int] = attrs.Factory(count)
    sent: dict[bytes, float] = attrs.Factory(dict)  # when, by what is in them
    seen: float | None = None
    anchored: int | None = None
    fault: str = "NATS has not been reached yet"

    def arrived(self, channel: str, body: bytes) -> None:
        """One of the broker's own messages came in through the feed."""
        if channel == f"canary.{self.broker}":
            self.seen = trio.current_time()
            if (sent := self.sent.pop(body, None)) is not None:
                self.meters.canary.observe(self.seen - sent)
            self.alive()

    def silence(self) -> str | None:
        """Why no event can arrive; None while one can."""
        if self.seen is None:
            return self.fault
        late = trio.current_time() - self.seen
        return None if late < LATE_SECONDS else f"no canary for {late:.0f} s: {self.fault}"

    async def run(self) -> None:
        while True:
            try:
                await self.anchor()
                await self.fly()
                self.fault = "it was stored, but has not come back"
            except Unavailable as error:
                self.fault = error.message
                self.alive()
            await trio.sleep(EVERY_SECONDS if self.seen else EVERY_SECONDS / 20)

    async def fly(self) -> None:
        body = str(next(self.numbers)).encode()
        while len(self.sent) >= ON_THEIR_WAY:
            del self.sent[next(iter(self.sent))]
        began = self.sent[body] = trio.current_time()
        subject = self.names.subject(subjects.BROKER, f"canary.{self.broker}")
        await self.bus.publish(subject, body, headers={"Nats-TTL": KEPT})
        self.meters.round_trip.observe(trio.current_time() - began)

    def age(self) -> float | None:
        """For how many seconds none has come; None before the first one."""
        return None if self.seen is None else trio.current_time() - self.seen

    async def anchor(self) -> None:
        """Lays an anchor where this period has none yet."""
        period = int(time.time() // max(self.max_age / ANCHORS, 60.0)) if self.max_age else 0
        if period == self.anchored:
            return
        subject = self.names.subject(subjects.BROKER, f"anchor.{period}")
        if not (await self.bus.read(subject, after=0, limit=1)).records:
            await self.bus.publish(subject, b"", message_id=f"_broker:anchor-{period}")
        self.anchored = period
