"""Sets of sequences, stored as runs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@attrs.frozen
class Ranges:
    """Inclusive runs from `firsts[i]` to `lasts[i]`, ascending, with a gap between any two of them."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Ranges:
        """Return the set of ascending numbers, each given once."""
        every = list(numbers)
        if not every:
            return NOTHING
        ends = [at for at, (one, two) in enumerate(pairwise(every)) if two != one + 1]
        return cls(
            (every[0], *[every[at + 1] for at in ends]),
            (*[every[at] for at in ends], every[-1]),
        )

    @classmethod
    def joined(cls, runs: Iterable[tuple[int, int]]) -> Ranges:
        """Return the set of some runs, ordered by their firsts; they may overlap."""
        firsts: list[int] = []
        lasts: list[int] = []
        for first, last in runs:
            if last < first:
                continue
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        return cls(tuple(firsts), tuple(lasts))

    def __bool__(self) -> bool:
        return bool(self.firsts)

    def __len__(self) -> int:
        return sum(self.lasts) - sum(self.firsts) + len(self.firsts)

    def __contains__(self, number: int) -> bool:
        return self.meets(number - 1, number)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the runs."""
        return zip(self.firsts, self.lasts, strict=True)

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.joined(sorted([*self, *other])) if self and other else self or other

    def __sub__(self, other: Ranges) -> Ranges:
        if not (self and other):
            return self
        # Skip what both begin and end with: of two looks at a stream most is the same.
        start = alike(self, other)
        mine = Ranges(self.firsts[start:], self.lasts[start:])
        theirs = Ranges(other.firsts[start:], other.lasts[start:])
        end = len(mine.firsts) - alike(mine.backwards(), theirs.backwards())
        left: list[tuple[int, int]] = []
        for first, last in zip(mine.firsts[:end], mine.lasts[:end], strict=True):
            for low, high in theirs.within(first, last):
                left.append((first, low - 1))
                first = high + 1
            left.append((first, last))
        return Ranges.joined(left)

    def backwards(self) -> Ranges:
        return Ranges(self.firsts[::-1], self.lasts[::-1])

    def meets(self, after: int, upto: int) -> bool:
        """Return whether it contains any of the numbers after `after` up to `upto`."""
        at = bisect_left(self.lasts, after + 1)
        return after < upto and at < len(self.firsts) and self.firsts[at] <= upto

    def within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of its runs that lie between `first` and `last`."""
        for at in range(bisect_left(self.lasts, first), bisect_right(self.firsts, last)):
            yield max(first, self.firsts[at]), min(last, self.lasts[at])

    def above(self, number: int) -> Ranges:
        """Return it without the numbers up to this one."""
        at = bisect_left(self.lasts, number + 1)
        if at < len(self.firsts) and self.firsts[at] <= number:
            return Ranges((number + 1, *self.firsts[at + 1 :]), self.lasts[at:])
        return Ranges(self.firsts[at:], self.lasts[at:])


def alike(one: Ranges, other: Ranges) -> int:
    """Return the number of runs with which both begin."""
    low, high = 0, min(len(one.firsts), len(other.firsts))
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low, middle)
        if one.firsts[part] == other.firsts[part] and one.lasts[part] == other.lasts[part]:
            low = middle
        else:
            high = middle - 1
    return low


NOTHING = Ranges()
