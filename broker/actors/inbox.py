"""What has arrived for a tenant and is not fanned out yet."""

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

INBOX_EVENTS = 16384  # beyond either bound the tenant is behind, and reads from the stream instead
INBOX_BYTES = 16 * 1024 * 1024


@attrs.frozen
class Hole:
    """The feed has come to the position `upto`, and something on its way there is gone."""

    upto: Position


class Inbox:
    """What has arrived and is not fanned out yet, bounded. `lost`: the bound was passed, all was dropped.

    `renewed`: the stream began anew; what was in here belonged to the old one. `notices` stand among the
    events: each comes after so many that were ever taken.
    """

    def __init__(self) -> None:
        self.records: deque[Checked] = deque()
        self.size = 0
        self.taken = 0  # so many events, ever
        self.marks: deque[tuple[int, float]] = deque()  # taken to there, the oldest was stored then
        self.stored_at: float | None = None  # the oldest of the last tick's worth, where it is known
        self.lost = False
        self.renewed = False
        self.notices: deque[tuple[int, Notice | Hole]] = deque()
        self.arrived = Signal()

    def put(self, channel: str, record: Record) -> None:
        if self.lost:
            return
        self.records.append((channel, record))
        self.size += len(record[2])
        if len(self.records) > INBOX_EVENTS or self.size > INBOX_BYTES:
            self.lose()

    def wake(self, stored_at: float | None) -> None:
        """Some have been put; NATS stored the oldest of what came at once at `stored_at` (Unix seconds)."""
        if stored_at is not None and self.records:
            self.marks.append((self.taken + len(self.records), stored_at))
        self.arrived.set()

    def announce(self, notice: Notice | Hole) -> None:
        self.notices.append((self.taken + len(self.records), notice))
        self.arrived.set()

    def due(self) -> Notice | Hole | None:
        """The notice that comes before the next event."""
        if self.notices and self.notices[0][0] <= self.taken:
            return self.notices.popleft()[1]
        return None

    def clear(self) -> None:
        self.notices = deque((self.taken, notice) for _, notice in self.notices)
        self.marks.clear()
        self.records.clear()
        self.size = 0

    def begin(self) -> None:
        """Takes in again what comes."""
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

    def take(self) -> list[Checked]:
        """The next tick's worth, up to the next notice."""
        before = self.notices[0][0] - self.taken if self.notices else TICK_EVENTS
        batch = take(self.records, min(before, TICK_EVENTS))
        self.size -= sum(len(record[2]) for _, record in batch)
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
    """Takes off a tick's worth."""
    batch: list[Checked] = []
    size = 0
    while records and len(batch) < most and size < TICK_BYTES:
        checked = records.popleft()
        size += len(checked[1][2])
        batch.append(checked)
    return batch
