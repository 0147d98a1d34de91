"""An event that a task can wait for again and again."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Signal:
    """Wakes the one task that waits for it. Set several times before that, it wakes the task once."""

    event: trio.Event = attrs.field(factory=trio.Event)

    def set(self) -> None:
        self.event.set()

    def clear(self) -> None:
        """Discard a `set` that nobody has waited for."""
        if self.event.is_set():
            self.event = trio.Event()

    async def wait(self) -> None:
        await self.event.wait()
        self.clear()
