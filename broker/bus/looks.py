"""What the stream holds and what has been deleted from it, by `STREAM.INFO`.

No advisory reports a purge, a single deleted message, or an expired time to live. The count of deleted
messages shows them, and their sequences are read only when it has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.bus import api
from broker.ranges import NOTHING, Ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus.base import StreamState
    from broker.bus.epochs import Epochs
    from broker.bus.generations import Generations

NAMED = 100_000  # deleted sequences that are read one by one: 600 KB, 10 ms


@attrs.define(eq=False)
class Looks:
    """The state of the stream; deleted sequences are remembered from one look to the next."""

    generations: Generations | Epochs
    reads: bool = True  # which messages were deleted; not for a keyed stream, where most are
    life: str = ""  # the incarnation of the stream that the rest describes
    deleted: Ranges = NOTHING
    unnamed: int = 0
    seen: tuple[int, int] = (0, 0)  # first sequence and number of deleted ones, when they were too many

    async def look(self) -> StreamState:
        """Return the stream as it is now. Raises `Unavailable`."""
        return await self.understand(await self.generations.info())

    async def understand(self, info: Mapping[str, Any]) -> StreamState:
        """Return the same from an answer to `STREAM.INFO` that has just arrived."""
        state = info["state"]
        if not self.reads:
            return self.described(info)
        life = self.generations.incarnation(info)
        if self.life != life:  # another store may lack other messages
            self.life, self.deleted, self.unnamed, self.seen = life, NOTHING, 0, (0, 0)
        count = state.get("num_deleted", 0)
        # Deleted sequences leave only at the beginning of the stream, so an equal count means the same ones.
        self.deleted = self.deleted.above(state["first_seq"] - 1) if state["messages"] else NOTHING
        if count > NAMED:
            if self.seen != (state["first_seq"], count):
                self.seen, self.unnamed = (state["first_seq"], count), state["last_seq"]
            self.deleted = NOTHING
        elif count != len(self.deleted):
            info = await self.generations.info(deleted_details=True)
            self.deleted = Ranges.of(info["state"].get("deleted") or ())
        return self.described(info)

    def described(self, info: Mapping[str, Any]) -> StreamState:
        found = api.stream_state(info, incarnation=self.generations.incarnation(info))
        return attrs.evolve(
            found,
            deleted=self.deleted,
            unnamed=self.unnamed,
            per_subject=max(0, info["config"].get("max_msgs_per_subject", -1)),
        )
