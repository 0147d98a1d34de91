"""Delivered bytes at a rate: between an outlet and its link, where a limit asks for it.

Whoever is over the rate is a slow client: it falls behind as a whole, reads on by its lag policy, and loses
nothing. Installed for connections that are limited in this alone; others write to their link directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from broker import limits
from broker.limits import DELIVERED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.actors.transport import Transport
    from broker.limits import Budget, Excess

PIECE_BYTES: Final = 4096  # so much may be sent on credit: many may share a rate, and each waits its turn


@attrs.define(eq=False)
class Pace:
    """The sends of a transport, paced by all of `budgets`.

    Each takes as much as there is, and a piece at least, while no budget is in debt. What waits takes its
    place in the queue that a debt is: a piece is charged at once, and sent when what was there before is
    paid; after 20 s at most, so that the client sees signs of life even where a rate is far too small for all
    that share it. `until` is when the last wait ends: the time before is no stall of the client's.
    """

    transport: Transport
    budgets: Sequence[Budget]
    count: Callable[[Excess], object]
    until: float = 0.0
    lifted: trio.Event = attrs.Factory(trio.Event)

    def room(self, now: float) -> float:
        """How many bytes may be sent at once."""
        return max(PIECE_BYTES, limits.level(self.budgets, DELIVERED, now))

    def send_nowait(self, data: bytes | memoryview) -> int:
        """As the transport's; 0 also when there is a debt."""
        now = trio.current_time()
        if excess := limits.spend(self.budgets, DELIVERED, 0, now):
            self.count(excess)
            return 0
        sent = self.transport.send_nowait(memoryview(data)[: int(min(len(data), self.room(now)))])
        limits.spend(self.budgets, DELIVERED, sent, now)
        return sent

    async def send_some(self, data: bytes | memoryview) -> int:
        """As the transport's, after a wait for what was spent before."""
        now = trio.current_time()
        piece = memoryview(data)[: int(min(len(data), self.room(now)))]
        excess = limits.spend(self.budgets, DELIVERED, len(piece), now)
        sent = 0
        try:
            if excess:
                self.count(excess)
                self.until = now + excess.seconds
                with trio.move_on_at(self.until):
                    await self.lifted.wait()
            sent = await self.transport.send_some(piece)
        finally:
            limits.spend(self.budgets, DELIVERED, sent - len(piece), trio.current_time())
        return sent

    def lift(self) -> None:
        """No waiting from now on: the connection ends, or is not limited any more."""
        self.budgets = ()
        self.until = 0.0
        self.lifted.set()
