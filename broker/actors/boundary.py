"""Where an exception ends: at the part that it happened in.

Three parts have such a place: a connection (all that acts on it, whoever calls), a tenant, and each piece of
the background work, which begins again. Whatever passes none of them is the end of the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from broker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

BACKOFF = Backoff(first=0.1, longest=5.0, jitter=0.5)  # before a part of the background begins again
SOUND_SECONDS = 60.0  # so long without a crash, and the next is a first one

log = structlog.get_logger()


class Guarded(Protocol):
    """What a boundary tells of what went wrong."""

    def crashed(self, error: Exception) -> None:
        """End: the link is lost (`LinkLost`), or something is wrong that nobody expects. Must not raise."""


class Boundary:
    """Whatever goes wrong within it is told to `part`, and ends there.

    No generator, which would be half a KiB more for each silent client.
    """

    __slots__ = ("part",)

    def __init__(self, part: Guarded) -> None:
        self.part = part

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.part.crashed(error)
        elif isinstance(error, BaseExceptionGroup):  # what went wrong while it was cancelled
            faults, rest = error.split(Exception)
            if faults is not None and rest is not None:
                self.part.crashed(faults)
                raise rest
        return isinstance(error, Exception)


def each(*steps: Callable[[], object], failed: Callable[[Exception], object]) -> None:
    """Takes all steps, whichever of them fail."""
    for step in steps:
        try:
            step()
        except Exception as error:  # that one alone
            failed(error)


async def kept(
    name: str, work: Callable[[], Awaitable[None]], crashed: Callable[[], object] = lambda: None
) -> None:
    """Runs a part of the background, which begins again after a crash; `crashed` is called in between."""
    failures = 0
    while True:
        began = trio.current_time()
        try:
            await work()
        except Exception:  # whatever it is: without this part the others still serve
            log.exception("part_crashed", part=name)
        else:
            return
        crashed()
        if trio.current_time() > began + SOUND_SECONDS:
            failures = 0
        await trio.sleep(BACKOFF.delay(failures))
        failures += 1
