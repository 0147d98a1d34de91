"""Takes what was deleted from the stream out of this broker's memory, within two seconds.

Nobody tells of a deletion: the stream is looked at each second, and after each read of history. What it names
is blanked in the intake, in each tenant's ring and pages, and in snapshots under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import structlog
import trio

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
    """Looks at the stream, and keeps the memory to what it holds."""

    bus: Bus
    intake: Intake
    tenants: Tenants
    doubt: int = 0

    async def run(self) -> None:
        """Looks, for ever."""
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
            await trio.sleep(LOOK_SECONDS)

    async def look(self) -> StreamState:
        """The stream as it is; what of it is gone is forgotten. Raises `Unavailable`."""
        state = await self.bus.state()
        self.note(state)
        return state

    def note(self, state: StreamState) -> None:
        """Forgets what the stream does not hold any more."""
        gone = self.intake.gone
        if state.incarnation != gone.incarnation:
            return  # the feed comes to that
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
        """Forgets everything that came before a time."""
        self.intake.forget(before=before)
        for tenant in self.tenants.running.values():
            tenant.shorten(before)
