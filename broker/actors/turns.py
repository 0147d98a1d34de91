"""Long work in short turns, so that nobody waits for it."""

from __future__ import annotations

from typing import Final

import trio

TURN_SECONDS: Final = 0.002  # of work before other tasks get their turn


class Turn:
    """One task's turn of the loop, which it passes on when that has become long.

    By time and not by count: what is counted takes microseconds or milliseconds, as it happens.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = trio.current_time() + TURN_SECONDS

    async def pass_on(self) -> None:
        """Lets other tasks run, if this one has worked for long enough. To be called between two pieces."""
        if trio.current_time() >= self.until:
            await trio.lowlevel.checkpoint()
            self.until = trio.current_time() + TURN_SECONDS
