"""The recent ticks of a tenant, limited in size and age."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import attrs

from broker.eventlog.tick import merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.config import Ring as Bounds
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.ranges import Ranges

SMALL, SMALL_BYTES = 16, 4096  # maximum events and bytes of a tick that is merged with others
LOOSE = 32  # ticks merged at a time


@attrs.frozen(kw_only=True)
class RingStatistics:
    ticks: int
    events: int
    size: int


class Ring:
    """Ticks in order, limited by count, bytes and age; the newest may be read while it is being sent.

    Everything after the place `floor` is here. Small ticks, typical of a quiet tenant, are merged: reading
    costs per tick, and a tick of one event takes twice the memory.
    """

    def __init__(self, bounds: Bounds, *, floor: int) -> None:
        self.bounds = bounds
        self.floor = floor
        self.ticks: list[Tick] = []
        self.heads: list[int] = []
        self.start = 0  # ticks before this index are dropped; removed from the lists now and then
        self.events = 0
        self.size = 0
        self.loose = 0  # number of newest ticks that are small and not merged yet
        self.merges = bounds.events >= LOOSE * SMALL * 8  # whole ticks are dropped: not too large ones

    def add(self, tick: Tick) -> None:
        if self.loose == LOOSE and self.merges:
            self.merge()
        small = len(tick.frames) <= SMALL and tick.size <= SMALL_BYTES
        self.loose = self.loose + 1 if small else 0
        self.ticks.append(tick)
        self.heads.append(tick.head)
        self.events += len(tick.frames)
        self.size += tick.size
        while self.events > self.bounds.events or self.size > self.bounds.bytes:
            if self.start == len(self.ticks) - 1:
                break  # the tick that is being sent stays, however large
            self.drop()
        self.expire(tick.time)

    def merge(self) -> None:
        """Merge the loose ticks into one; none of them is being sent any more."""
        start = max(self.start, len(self.ticks) - self.loose)
        self.loose = 0
        if start < len(self.ticks):
            tick = merged(self.ticks[start:])
            self.ticks[start:], self.heads[start:] = [tick], [tick.head]

    def expire(self, now: float) -> None:
        """Drop what is older than the limit; `now` is on the clock of the ticks."""
        while self.start < len(self.ticks) and self.ticks[self.start].time < now - self.bounds.seconds:
            self.drop()

    def drop(self) -> None:
        """Drop the oldest tick."""
        tick = self.ticks[self.start]
        self.floor = tick.head
        self.events -= len(tick.frames)
        self.size -= tick.size
        self.start += 1
        if self.start > 64 and self.start * 2 > len(self.ticks):
            del self.ticks[: self.start], self.heads[: self.start]
            self.start = 0

    @property
    def oldest(self) -> Tick | None:
        """Return the oldest tick, if there is one."""
        return self.ticks[self.start] if self.start < len(self.ticks) else None

    def forget(self, selection: Selection) -> None:
        """Drop the masks of a selection that has ended."""
        for tick in self.ticks[self.start :]:
            tick.masks.pop(selection, None)

    def blank(self, deleted: Ranges, *, but: Tick | None) -> None:
        """Remove deleted events from all ticks except the one that is being sent."""
        for tick in self.ticks[self.start :]:
            if tick is not but:
                self.size -= tick.blank(deleted)

    def after(self, place: int) -> Sequence[Tick]:
        """Return the ticks with events after a place, which must not be below `floor`."""
        return self.ticks[bisect_right(self.heads, place, self.start) :]

    def statistics(self) -> RingStatistics:
        return RingStatistics(ticks=len(self.ticks) - self.start, events=self.events, size=self.size)
