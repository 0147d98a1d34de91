"""NATS subscriptions to live subjects: one per tenant that has a live subscriber, and one for broadcasts."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import attrs
import trio

from broker.errors import Unavailable
from broker.parts import Part
from broker.subjects import BROADCAST

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus, StreamState
    from broker.subjects import Names


@attrs.define(eq=False)
class LiveSubjects(Part):
    """Subscribes and unsubscribes, one operation at a time for each subject."""

    bus: Bus
    names: Names
    connected: bool = False  # set after the bus has renewed the subscriptions held
    locks: defaultdict[str, trio.Lock] = attrs.Factory(lambda: defaultdict(trio.Lock))
    held: set[str] = attrs.Factory(set)

    def up(self, _: StreamState) -> None:
        self.connected = True

    def down(self) -> None:
        self.connected = False

    async def hold(self, tenant: str) -> None:
        """Return once NATS has confirmed the subscriptions of a live subscriber. Raise `Unavailable`."""
        for name in (tenant, BROADCAST):
            await self.hold_one(f"{self.names.live}.{name}.>")

    async def hold_one(self, subject: str) -> None:
        if not self.connected:
            raise Unavailable("NATS is out of reach", retry_after=1.0)
        async with self.locks[subject]:
            if subject not in self.held:
                await self.bus.subscribe_live(subject)
                self.held.add(subject)

    async def drop_unless(self, wanted: Callable[[str], bool]) -> None:
        """End the subscriptions that nobody needs any more."""
        for subject in list(self.held):
            lock = self.locks[subject]
            async with lock:
                if not wanted(subject):
                    await self.bus.unsubscribe_live(subject)
                    self.held.discard(subject)
            if subject not in self.held and not lock.statistics().tasks_waiting:
                del self.locks[subject]
