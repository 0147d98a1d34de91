"""What the stream holds and what has been deleted from it, by `STREAM.INFO`.

No advisory tells of a purge, of a single message that is deleted, or of a time to live that is over. The
count of what is missing does, and the numbers themselves are asked for only when it has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.bus import api
from broker.ranges import NOTHING, Ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus.base import StreamState
    from broker.bus.generations import Generations

NAMED = 100_000  # deleted messages that are asked for one by one: 600 KB, 10 ms


@attrs.define(eq=False)
class Looks:
    """Looks at the stream; what was deleted is remembered from one look to the next."""

    generations: Generations
    life: tuple[str, int] = ("", 0)  # the stream that the rest is about, and its generation
    deleted: Ranges = NOTHING
    unnamed: int = 0
    seen: tuple[int, int] = (0, 0)  # the first sequence and how many were deleted, when that was too many

    async def look(self) -> StreamState:
        """Return the stream as it is now. Raises `Unavailable`."""
        return await self.understand(await self.generations.info())

    async def understand(self, info: Mapping[str, Any]) -> StreamState:
        """Return the same, of what `STREAM.INFO` has just said."""
        state = info["state"]
        life = api.created(info), self.generations.number(info)
        if self.life != life:  # what came back may lack others than it did before
            self.life, self.deleted, self.unnamed, self.seen = life, NOTHING, 0, (0, 0)
        count = state.get("num_deleted", 0)
        # Those that are known leave only by the beginning of the stream; so an equal count is the same ones.
        self.deleted = self.deleted.above(state["first_seq"] - 1) if state["messages"] else NOTHING
        if count > NAMED:
            if self.seen != (state["first_seq"], count):
                self.seen, self.unnamed = (state["first_seq"], count), state["last_seq"]
            self.deleted = NOTHING
        elif count != len(self.deleted):
            info = await self.generations.info(deleted_details=True)
            self.deleted = Ranges.of(info["state"].get("deleted") or ())
        found = api.stream_state(info, generation=self.generations.number(info))
        return attrs.evolve(
            found,
            deleted=self.deleted,
            unnamed=self.unnamed,
            per_subject=max(0, info["config"].get("max_msgs_per_subject", -1)),
        )
