"""A limit on concurrent operations, fair between tenants."""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@attrs.define(eq=False)
class FairGate:
    """Admits `free` operations at a time. Waiting tenants take turns, however many waiters each has."""

    free: int
    waiting: OrderedDict[str, deque[trio.Event]] = attrs.Factory(OrderedDict)

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn of the tenant, and pass it on at the end."""
        await self.acquire(tenant)
        try:
            yield
        finally:
            self.release()

    def widen(self, more: int) -> None:
        """Admit `more` at a time, or fewer if negative; operations in progress finish first."""
        self.free += more
        while self.free > 0 and self.waiting:
            self.free -= 1
            self.hand_on()

    async def acquire(self, tenant: str) -> None:
        if self.free > 0:
            self.free -= 1
            return
        mine = trio.Event()
        queue = self.waiting.setdefault(tenant, deque())
        queue.append(mine)
        try:
            await mine.wait()
        except trio.Cancelled:
            if mine.is_set():
                self.release()  # the turn came and the waiter left at the same moment
            else:
                queue.remove(mine)
                if not queue and self.waiting.get(tenant) is queue:
                    del self.waiting[tenant]
            raise

    def waits(self) -> int:
        """Return the number of waiters."""
        return sum(map(len, self.waiting.values()))

    def release(self) -> None:
        if not self.waiting or self.free < 0:
            self.free += 1
        else:
            self.hand_on()

    def hand_on(self) -> None:
        tenant, queue = self.waiting.popitem(last=False)
        queue.popleft().set()
        if queue:
            self.waiting[tenant] = queue  # behind the others
