"""Exception boundaries: an exception ends at the part in which it occurred.

Three kinds of part have a boundary: a connection (for everything that acts on it, whoever calls), a tenant,
and each background task, which is restarted. An exception that passes none of them ends the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from broker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

BACKOFF = Backoff(first=0.1, longest=5.0, jitter=0.5)  # before a background task is restarted
SOUND_SECONDS = 60.0  # without a crash for so long, failures count from zero

log = structlog.get_logger()


class Guarded(Protocol):
    """The part that a boundary notifies. Neither method may raise."""

    def crashed(self, error: Exception) -> None:
        """End: the link is lost (`LinkLost`), or something is wrong that nobody expects. Must not raise."""


class Boundary:
    """Reports any exception raised within it to `part`, and stops it there.

    Not a generator, which would cost another half KiB for each idle client.
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
        elif isinstance(error, BaseExceptionGroup):  # exceptions raised during a cancellation
            faults, rest = error.split(Exception)
            if faults is not None and rest is not None:
                self.part.crashed(faults)
                raise rest
        return isinstance(error, Exception)


def each(*steps: Callable[[], object], failed: Callable[[Exception], object]) -> None:
    """Execute all steps, even if some of them fail."""
    for step in steps:
        try:
            step()
        except Exception as error:  # the other steps are still executed
            failed(error)


async def kept(
    name: str, work: Callable[[], Awaitable[None]], crashed: Callable[[], object] = lambda: None
) -> None:
    """Run a background task and restart it after a crash; `crashed` is called before each restart."""
    failures = 0
    while True:
        began = trio.current_time()
        try:
            await work()
        except Exception:  # any: the other parts can serve without this one
            log.exception("part_crashed", part=name)
        else:
            return
        crashed()
        if trio.current_time() > began + SOUND_SECONDS:
            failures = 0
        await trio.sleep(BACKOFF.delay(failures))
        failures += 1
