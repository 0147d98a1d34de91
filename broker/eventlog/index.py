"""Where the newest stored events are: the sequences of each subject, and when NATS stored each.

Built by the feed as it goes, of all tenants. With it the newest events of a quiet channel are found without
searching the stream, which would delay everybody who publishes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from heapq import nlargest, nsmallest
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Events: 4 MB where many are of the same subject, 40 MB where each has its own. More than the intake
# remembers, so that the times of those are known.
KEPT = 131_072
WASTE = 64  # forgotten sequences of a subject, before they are removed


class Entries:
    """The sequences of one subject, ascending. Those at the beginning may be forgotten ones."""

    __slots__ = ("sequences", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.sequences = array("Q")


class Index:
    """All stored events after the position `floor`; of some it is known only here that they were deleted."""

    __slots__ = ("floor", "most", "owners", "sequences", "start", "subjects", "times")

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        self.most = KEPT
        self.subjects: dict[str, Entries] = {}
        self.sequences = array("Q")  # these three are parallel; what is before `start` is forgotten
        self.times = array("q")  # ns since 1970
        self.owners: list[Entries] = []
        self.start = 0

    def __len__(self) -> int:
        return len(self.sequences) - self.start

    def add(self, sequence: int, subject: str, time: int) -> None:
        """Take the next event; beyond the bound the oldest is forgotten."""
        entries = self.subjects.get(subject)
        if entries is None:
            entries = self.subjects[subject] = Entries(subject)
        entries.sequences.append(sequence)
        self.sequences.append(sequence)
        self.times.append(time)
        self.owners.append(entries)
        if len(self) > self.most:
            self.forget()

    def forget(self) -> None:
        """Forget the oldest event."""
        self.floor, oldest = self.sequences[self.start], self.owners[self.start]
        held = oldest.sequences
        self.start += 1
        if held[-1] == self.floor:
            del self.subjects[oldest.subject]
        elif len(held) > WASTE and held[WASTE] <= self.floor:
            del held[: bisect_right(held, self.floor)]
        if self.start > self.most // 4:
            del self.sequences[: self.start], self.times[: self.start], self.owners[: self.start]
            self.start = 0

    # --- questions -----------------------------------------------------------------------------------

    def newest(self, subjects: Iterable[str], *, upto: int, count: int) -> list[int]:
        """Return the newest `count` sequences of the subjects up to a position, ascending."""
        held = [self.held(subject) for subject in subjects]
        ends = [(each, bisect_right(each, upto)) for each in held]
        found = chain.from_iterable(each[max(0, end - count) : end] for each, end in ends)
        return sorted(nlargest(count, (each for each in found if each > self.floor)))

    def oldest(self, subjects: Iterable[str], *, after: int, upto: int, count: int) -> list[int]:
        """Return the oldest `count` sequences of the subjects after a position up to another, ascending."""
        after = max(after, self.floor)
        held = [self.held(subject) for subject in subjects]
        starts = [(each, bisect_right(each, after)) for each in held]
        found = chain.from_iterable(each[start : start + count] for each, start in starts)
        return nsmallest(count, (each for each in found if each <= upto))

    def below(self, upto: int, count: int) -> tuple[Sequence[int], Sequence[Entries]]:
        """Return the newest `count` sequences up to a position, ascending, and the subject of each."""
        end = bisect_right(self.sequences, upto, self.start)
        begin = max(self.start, end - count)
        return self.sequences[begin:end], self.owners[begin:end]

    def above(self, after: int, count: int) -> tuple[Sequence[int], Sequence[Entries]]:
        """Return the oldest `count` sequences after a position, ascending, and the subject of each."""
        begin = bisect_right(self.sequences, after, self.start)
        return self.sequences[begin : begin + count], self.owners[begin : begin + count]

    def held(self, subject: str) -> array[int]:
        entries = self.subjects.get(subject)
        return entries.sequences if entries else array("Q")

    def time(self, sequence: int) -> int | None:
        """Return when an event was stored (ns since 1970); None if it is not known."""
        index = bisect_left(self.sequences, sequence, self.start)
        known = index < len(self.sequences) and self.sequences[index] == sequence
        return self.times[index] if known else None

    def newest_time(self, upto: int) -> int | None:
        """Return when the newest event up to a position was stored (ns).

        None if that may lie at or below the floor.
        """
        index = bisect_right(self.sequences, upto, self.start)
        return None if index == self.start else self.times[index - 1]

    def before(self, time: int) -> int | None:
        """Return the position before the first event stored at or after a time (ns).

        If all were stored before, the newest position; None if that event may lie at or below the floor.
        """
        index = bisect_left(self.times, time, self.start)
        if index == self.start:
            return None
        return self.sequences[-1] if index == len(self.times) else self.sequences[index] - 1
