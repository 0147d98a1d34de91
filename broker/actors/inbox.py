"""Events that have arrived for a tenant and have not been fanned out yet."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs

from broker.eventlog.log import TICK_BYTES, TICK_EVENTS
from broker.signals import Signal

if TYPE_CHECKING:
    from broker.bus.base import Record
    from broker.eventlog.history import Checked
    from broker.flow.client import Notice
    from broker.wire.positions import Position

INBOX_BYTES = 64 * 1024 * 1024  # beyond that the tenant is behind, and reads from the stream instead
EVENT_BYTES = 400  # what an event takes besides its body


@attrs.frozen
class Hole:
    """The feed has reached the position `upto`, and something before it has been deleted."""

    upto: Position


class Inbox:
    """Events that have arrived and have not been fanned out yet, up to a limit.

    `lost`: the limit was exceeded, and everything was dropped. `renewed`: the stream was recreated; the
    contents belonged to the old one. `notices` are ordered among the events: each follows a given number of
    events, counted from the beginning.
    """

    def __init__(self) -> None:
        self.records: deque[Checked] = deque()
        self.size = 0
        self.taken = 0  # events taken since the beginning
        self.marks: deque[tuple[int, float]] = deque()  # up to that count, the oldest was stored at that time
        self.stored_at: float | None = None  # of the oldest event in the last batch, if known
        self.lost = False
        self.renewed = False
        self.notices: deque[tuple[int, Notice | Hole]] = deque()
        self.arrived = Signal()

    def put(self, channel: str, record: Record) -> None:
        if self.lost:
            return
        self.records.append((channel, record))
        self.size += EVENT_BYTES + len(record[2])
        if self.size > INBOX_BYTES:
            self.lose()

    def wake(self, stored_at: float | None) -> None:
        """Wake the tenant; NATS stored the oldest of the events just put at `stored_at` (Unix seconds)."""
        if stored_at is not None and self.records:
            self.marks.append((self.taken + len(self.records), stored_at))
        self.arrived.set()

    def announce(self, notice: Notice | Hole) -> None:
        self.notices.append((self.taken + len(self.records), notice))
        self.arrived.set()

    def due(self) -> Notice | Hole | None:
        """Return and remove the notice that precedes the next event, if there is one."""
        if self.notices and self.notices[0][0] <= self.taken:
            return self.notices.popleft()[1]
        return None

    def clear(self) -> None:
        self.notices = deque((self.taken, notice) for _, notice in self.notices)
        self.marks.clear()
        self.records.clear()
        self.size = 0

    def begin(self) -> None:
        """Accept events again."""
        self.clear()
        self.lost = self.renewed = False

    def lose(self) -> None:
        self.clear()
        self.lost = True
        self.arrived.set()

    def renew(self) -> None:
        self.clear()
        self.renewed = True
        self.arrived.set()

    def take(self, most: int = TICK_EVENTS) -> list[Checked]:
        """Remove and return the next batch, of at most `most` events, up to the next notice."""
        before = self.notices[0][0] - self.taken if self.notices else most
        batch = take(self.records, min(before, most))
        self.size -= sum(EVENT_BYTES + len(record[2]) for _, record in batch)
        self.taken += len(batch)
        self.stored_at = None
        while self.marks and self.marks[0][0] <= self.taken:
            _, stored_at = self.marks.popleft()
            self.stored_at = self.stored_at or stored_at
        return batch

    def empty(self) -> bool:
        return not (self.records or self.lost or self.renewed or self.notices)

    async def wait(self) -> None:
        if self.empty():
            self.arrived.clear()
            await self.arrived.wait()


def take(records: deque[Checked], most: int = TICK_EVENTS) -> list[Checked]:
    """Remove and return one batch: at most `most` events, and about `TICK_BYTES`."""
    batch: list[Checked] = []
    size = 0
    while records and len(batch) < most and size < TICK_BYTES:
        checked = records.popleft()
        size += len(checked[1][2])
        batch.append(checked)
    return batch
