"""Removes messages that were deleted from the stream from this broker's memory, within two seconds.

NATS does not announce deletions: the stream is inspected each second, and after each read of history. Deleted
messages are blanked in the intake, in each tenant's ring and pages, and in snapshots under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.beats import beat
from broker.errors import Unavailable
from broker.parts import Part

if TYPE_CHECKING:
    from broker.actors.intake import Intake
    from broker.actors.tenants import Tenants
    from broker.bus.base import Bus, StreamState
    from broker.ranges import Ranges

LOOK_SECONDS = 1.0
LOOKS_IN_DOUBT = (
    2  # so often all that is older than one look is dropped, when too much was deleted to be named
)

log = structlog.get_logger()


@attrs.define(eq=False)
class Deletions(Part):
    """Inspects the stream, and removes from memory what it no longer holds."""

    bus: Bus
    intake: Intake
    tenants: Tenants
    doubt: int = 0

    async def run(self) -> None:
        """Inspect the stream each second, until cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.debug("deletions_not_seen", error=error.message)
            now = trio.current_time()
            self.drop(self.intake.gone.expire(now))
            if self.doubt:
                self.doubt -= 1
                self.shorten(now - LOOK_SECONDS)
            await beat(LOOK_SECONDS)

    async def look(self) -> StreamState:
        """Return the state of the stream; forget what it no longer holds. Raises `Unavailable`."""
        state = await self.bus.state()
        self.note(state)
        return state

    def note(self, state: StreamState) -> None:
        """Forget what the stream no longer holds."""
        gone = self.intake.gone
        if state.incarnation != gone.incarnation:
            return  # the feed notices the new stream itself
        if state.unnamed > gone.unnamed:
            self.doubt = LOOKS_IN_DOUBT
            log.info("deleted_unnamed", upto=state.unnamed)
        self.drop(gone.note(state))

    def drop(self, gone: Ranges) -> None:
        if gone:
            self.intake.drop(gone)
            for tenant in self.tenants.running.values():
                tenant.drop(gone)

    def shorten(self, before: float) -> None:
        """Forget everything that arrived before a time."""
        self.intake.forget(before=before)
        for tenant in self.tenants.running.values():
            tenant.shorten(before)
