"""Where an exception ends: at the part that it happened in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.actors.transport import LinkLost

if TYPE_CHECKING:
    from types import TracebackType


class Guarded(Protocol):
    """What a boundary tells of what went wrong."""

    def link_lost(self) -> None: ...

    def crashed(self, error: Exception) -> None: ...


class Boundary:
    """Whatever goes wrong within it is told to `part`, and ends there; the other such place is the tenant's.

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
        if isinstance(error, LinkLost):
            self.part.link_lost()
        elif isinstance(error, Exception):
            self.part.crashed(error)
        return isinstance(error, Exception)
