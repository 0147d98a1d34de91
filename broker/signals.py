"""A Trio event that can happen again."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Signal:
    """Wakes the one task that waits for it. Set any number of times before that, it wakes it once."""

    event: trio.Event = attrs.field(factory=trio.Event)

    def set(self) -> None:
        self.event.set()

    def clear(self) -> None:
        """Forget what was set and not waited for."""
        if self.event.is_set():
            self.event = trio.Event()

    async def wait(self) -> None:
        await self.event.wait()
        self.clear()
