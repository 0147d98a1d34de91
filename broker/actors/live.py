"""The subscriptions to live subjects: one for each tenant that has a live subscriber, one for broadcasts."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import attrs
import trio

from broker.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import Bus


@attrs.define(eq=False)
class LiveSubjects:
    """Subscribes and unsubscribes; one thing at a time for each subject."""

    bus: Bus
    connected: bool = False  # the supervisor knows; what is held is made again before it says so
    locks: defaultdict[str, trio.Lock] = attrs.Factory(lambda: defaultdict(trio.Lock))
    held: set[str] = attrs.Factory(set)

    async def hold(self, subject: str) -> None:
        """Returns once NATS has confirmed the subscription. Raises `Unavailable`."""
        if not self.connected:
            raise Unavailable("NATS is out of reach", retry_after=1.0)
        async with self.locks[subject]:
            if subject not in self.held:
                await self.bus.subscribe_live(subject)
                self.held.add(subject)

    async def drop_unless(self, wanted: Callable[[str], bool]) -> None:
        """Ends the subscriptions that nobody wants any more."""
        for subject in list(self.held):
            lock = self.locks[subject]
            async with lock:
                if not wanted(subject):
                    await self.bus.unsubscribe_live(subject)
                    self.held.discard(subject)
            if subject not in self.held and not lock.statistics().tasks_waiting:
                del self.locks[subject]
