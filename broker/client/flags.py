"""What the two sessions wait by, as far as both do it alike."""

from __future__ import annotations

from typing import Protocol


class Flag(Protocol):
    """An event of Trio or asyncio."""

    def set(self) -> None: ...

    async def wait(self) -> object: ...


class Host(Protocol):
    """A session, for who waits within it for something to come."""

    def flag(self) -> Flag: ...

    def clock(self) -> float:
        """Return the time in seconds on the monotonic clock of the loop."""

    async def attend(self, flag: Flag) -> None:
        """Wait for a flag. What arrives before it is read meanwhile."""

    def wake(self) -> None:
        """Wake the writer: there is something to send."""

    async def say(self) -> None:
        """Wake the writer, and on Trio let others run."""
