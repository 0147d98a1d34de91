"""Rate limits of delivered bytes: between a flow and its link, where one is configured.

A client over its rate is a slow client: it falls behind as a whole, reads on by its lag policy, and loses
nothing. Only connections with such a limit have a `Pace`; the others write to their link directly.
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

PIECE_BYTES: Final = 4096  # may be sent on credit: many connections may share a rate, and each waits its turn


@attrs.define(eq=False)
class Pace:
    """The sends of a transport, paced by all of `budgets`.

    While no budget is in debt, a send takes as much as the budgets allow, and at least one piece. A debt is a
    queue: a waiting piece is charged at once, and sent once the debt before it is paid; after 20 s at the
    latest, so that the client sees signs of life even where a rate is far too small for all that share it.
    `until` is the end of the last wait: the time before it is not a stall of the client.
    """

    transport: Transport
    budgets: Sequence[Budget]
    count: Callable[[Excess], object]
    until: float = 0.0
    lifted: trio.Event = attrs.Factory(trio.Event)

    def allowance(self, now: float) -> float:
        """Return how many bytes may be sent at once."""
        return max(PIECE_BYTES, limits.level(self.budgets, DELIVERED, now))

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Send as the transport does; return 0 also while there is a debt."""
        now = trio.current_time()
        if excess := limits.spend(self.budgets, DELIVERED, 0, now):
            self.count(excess)
            return 0
        sent = self.transport.send_nowait(memoryview(data)[: int(min(len(data), self.allowance(now)))])
        limits.spend(self.budgets, DELIVERED, sent, now)
        return sent

    async def send_some(self, data: bytes | memoryview) -> int:
        """Send as the transport does, after waiting until earlier debts are paid."""
        now = trio.current_time()
        piece = memoryview(data)[: int(min(len(data), self.allowance(now)))]
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
        """Stop all waiting: the connection is ending, or is no longer limited."""
        self.budgets = ()
        self.until = 0.0
        self.lifted.set()
