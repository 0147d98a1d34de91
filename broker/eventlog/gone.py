"""Deleted events: what nobody is sent any more, and for whom there is a gap.

The stream names the deleted sequences, but not whose events they were. For those that this broker has
recently received that is remembered, so that a tenant gets no gap for deleted events of another. For others
it is unknown, and every tenant gets a gap.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

import attrs

from broker import subjects
from broker.ranges import NOTHING, Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.bus.base import Record, StreamState

SEEN = 65_536  # at least so many owners are remembered, at most twice as many: 10 MB
TIMED = 100_000  # events with a TTL; the expiry of more is found by inspecting the stream
LOOKED_AT = 1000  # events inspected in a range, before it is called a gap
TTL = "Nats-TTL"  # https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-43.md
DURATION = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Owner(Protocol):
    """The tenant and channel of an event; usually the same object for all events of a channel."""

    @property
    def tenant(self) -> str: ...
    @property
    def channel(self) -> str: ...


@attrs.define(eq=False)
class Gone:
    """What is known about deletions in one incarnation of the stream.

    `named` are the deleted sequences that the stream names, `first` is where it begins. `expired` are those
    whose TTL is over and that the stream has not named yet. If the stream keeps only `per_subject` messages
    of each subject, an event that was replaced does not count as gone: `chosen` are those that were deleted
    otherwise.
    """

    incarnation: str = ""
    first: int = 1
    named: Ranges = NOTHING
    unnamed: int = 0
    expired: Ranges = NOTHING
    per_subject: int = 0
    chosen: Ranges = NOTHING
    newest_gone: int = 0
    sequences: list[int] = attrs.Factory(list)  # seen, ascending
    owners: list[Owner | None] = attrs.Factory(list)  # of these; None: not an event
    newest: dict[tuple[str, str], deque[int]] = attrs.Factory(dict)  # of each channel, with `per_subject`
    timed: list[tuple[float, int]] = attrs.Factory(list)  # a heap by expiry, on the loop's clock

    # --- arrivals ------------------------------------------------------------------------------------

    def saw(self, record: Record, owner: Owner | None, now: float) -> None:
        """Note the next record of the feed; `owner` is None if it is not an event."""
        self.sequences.append(record[0])
        self.owners.append(owner)
        if len(self.sequences) > 2 * SEEN:
            del self.sequences[:SEEN], self.owners[:SEEN]
        if self.per_subject and owner:
            channel = owner.tenant, owner.channel
            self.newest.setdefault(channel, deque(maxlen=self.per_subject)).append(record[0])
        if record[3] is not None and TTL in record[3] and len(self.timed) < TIMED:
            seconds = duration(record[3][TTL])
            if seconds is not None:
                heappush(self.timed, (now + seconds, record[0]))

    # --- deletions -----------------------------------------------------------------------------------

    def note(self, state: StreamState) -> Ranges:
        """Return what was deleted since the stream was inspected last."""
        front = Ranges.joined([(self.first, state.first - 1)])
        known = Ranges.joined(self.named.within(self.first, state.first - 1)) | self.expired
        fresh = (front | (state.deleted - self.named)) - known
        if self.per_subject != state.per_subject:
            self.per_subject = state.per_subject
            self.newest.clear()
        if state.deleted is not self.named:
            self.named = state.deleted
            self.expired -= self.named.above(self.expired.firsts[0] - 1) if self.expired else NOTHING
        self.first = max(self.first, state.first)
        self.expired = self.expired.above(self.first - 1)
        self.unnamed = max(self.unnamed, state.unnamed)
        self.note_newest()
        if self.per_subject and fresh:
            fresh = self.deliberate(fresh)
            self.chosen = (self.chosen | fresh).above(self.oldest - 1)
        return fresh

    def expire(self, now: float) -> Ranges:
        """Return what has expired since the last call."""
        over: list[int] = []
        while self.timed and self.timed[0][0] <= now:
            over.append(heappop(self.timed)[1])
        fresh = Ranges.of(each for each in sorted(over) if not self.has(each))
        self.expired |= fresh
        self.note_newest()
        if self.per_subject:
            self.chosen |= fresh
        return fresh

    def note_newest(self) -> None:
        lasts = [each.lasts[-1] for each in (self.named, self.expired) if each]
        self.newest_gone = max(self.first - 1, *lasts, 0)

    def deliberate(self, fresh: Ranges) -> Ranges:
        """Return those missing now that were not merely replaced by newer events of their channel.

        If one of a channel's newest is gone, everything that it had replaced is gone for good.
        """
        hit: set[tuple[str, str]] = set()
        for first, last in fresh:
            for sequence, owner in self.seen(first, last):
                channel = (owner.tenant, owner.channel) if owner else ("", "")
                if sequence in self.newest.get(channel, ()):
                    hit.add(channel)
        if not hit:
            return NOTHING
        return Ranges.of(
            sequence
            for sequence, owner in self.seen(self.oldest, self.sequences[-1])
            if owner and (owner.tenant, owner.channel) in hit and self.has(sequence)
        )

    # --- questions -----------------------------------------------------------------------------------

    def has(self, sequence: int) -> bool:
        """Return whether the stream no longer has this sequence."""
        return sequence < self.first or sequence in self.named or sequence in self.expired

    def late(self, records: Sequence[Record]) -> Ranges:
        """Return those records of the feed that were deleted before they arrived."""
        if not records or records[0][0] > self.newest_gone or self.per_subject:
            return NOTHING
        return Ranges.of(record[0] for record in records if record[0] and self.has(record[0]))

    def reaches(self, position: int) -> bool:
        """Return whether anything above a position may be gone."""
        return position < self.newest_gone or position < self.unnamed

    def between(self, tenant: str, after: int, upto: int, admits: Callable[[str], bool]) -> bool:
        """Return whether anything that somebody would have received is gone, after a position up to another.

        That is, the tenant's events and broadcasts in channels that `admits` accepts.
        """
        if after >= upto or not self.reaches(after):
            return False
        if after < self.unnamed:
            return True
        looked = 0
        for first, last in self.holes(after + 1, upto):
            seen = self.seen(first, last)
            looked += len(seen)
            if len(seen) < last + 1 - first or looked > LOOKED_AT:
                return True
            for _, owner in seen:
                if owner and owner.tenant in (tenant, subjects.BROADCAST) and admits(owner.channel):
                    return True
        return False

    def holes(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        if self.per_subject:
            yield from self.chosen.within(first, last)
            return
        if first < self.first:
            yield first, min(last, self.first - 1)
        yield from self.named.within(first, last)
        yield from self.expired.within(first, last)

    @property
    def oldest(self) -> int:
        """Return the first sequence whose owner is remembered."""
        return self.sequences[0] if self.sequences else 0

    def seen(self, first: int, last: int) -> list[tuple[int, Owner | None]]:
        low = bisect_left(self.sequences, first)
        high = bisect_right(self.sequences, last, low)
        return list(zip(self.sequences[low:high], self.owners[low:high], strict=True))


def duration(text: str) -> float | None:
    """Return a time to live in seconds, from a Go duration or whole seconds; None: no expiry."""
    if text.isdecimal():
        return float(text)
    parts = DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * SECONDS[unit] for number, unit in parts)
