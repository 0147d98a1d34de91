"""Sets of sequences, as the runs that they consist of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@attrs.frozen
class Ranges:
    """Runs from `firsts[i]` to `lasts[i]` inclusive, ascending, with something between any two of them."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Ranges:
        """From ascending numbers."""
        return cls.joined((number, number) for number in numbers)

    @classmethod
    def joined(cls, runs: Iterable[tuple[int, int]]) -> Ranges:
        """From runs in the order of their firsts; they may overlap."""
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
        """The runs."""
        return zip(self.firsts, self.lasts, strict=True)

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.joined(sorted([*self, *other])) if self and other else self or other

    def __sub__(self, other: Ranges) -> Ranges:
        if not (self and other):
            return self
        # Of two that are nearly the same, which may be long, what both have takes no loop.
        mine, theirs = set(self), set(other)
        other = Ranges.joined(sorted(theirs - mine))
        left: list[tuple[int, int]] = []
        for first, last in sorted(mine - theirs):
            for start, end in other.within(first, last):
                left.append((first, start - 1))
                first = end + 1
            left.append((first, last))
        return Ranges.joined(left)

    def meets(self, after: int, upto: int) -> bool:
        """Whether one of the numbers after `after` up to `upto` is in it."""
        at = bisect_left(self.lasts, after + 1)
        return after < upto and at < len(self.firsts) and self.firsts[at] <= upto

    def within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The runs that have numbers from `first` to `last`, each as far as it does."""
        for at in range(bisect_left(self.lasts, first), bisect_right(self.firsts, last)):
            yield max(first, self.firsts[at]), min(last, self.lasts[at])

    def above(self, number: int) -> Ranges:
        """Without the numbers up to this one."""
        at = bisect_left(self.lasts, number + 1)
        if at < len(self.firsts) and self.firsts[at] <= number:
            return Ranges((number + 1, *self.firsts[at + 1 :]), self.lasts[at:])
        return Ranges(self.firsts[at:], self.lasts[at:])


NOTHING = Ranges()
