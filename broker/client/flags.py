"""What the two sessions wait by, as far as both do it alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


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


async def until(host: Host, waiting: set[Flag], condition: Callable[[], bool]) -> None:
    """Wait for a condition, which is looked at again whenever the flags in `waiting` are set."""
    while not condition():
        flag = host.flag()
        waiting.add(flag)
        try:
            await host.attend(flag)
        finally:
            waiting.discard(flag)
