"""Long work in short turns, so that it does not delay other tasks."""

from __future__ import annotations

from typing import Final

import trio

TURN_SECONDS: Final = 0.002  # of work until other tasks may run


class Turn:
    """One task's turn of the event loop, which it passes on when the turn has become long.

    Measured in time and not in items: an item takes microseconds or milliseconds, depending on the case.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = trio.current_time() + TURN_SECONDS

    async def pass_on(self) -> None:
        """Let other tasks run if this one has worked for long enough. Call it between two pieces of work."""
        if trio.current_time() >= self.until:
            await trio.lowlevel.checkpoint()
            self.until = trio.current_time() + TURN_SECONDS
