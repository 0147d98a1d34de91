"""Ranges against plain sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.ranges import Ranges

numbers = st.sets(st.integers(1, 40))
number = st.integers(0, 41)


def of(members: set[int]) -> Ranges:
    return Ranges.of(sorted(members))


def spread(ranges: Ranges) -> set[int]:
    return {each for first, last in ranges for each in range(first, last + 1)}


@given(numbers)
def test_they_are_what_they_were_made_of(members: set[int]) -> None:
    """All numbers are in it, and no run touches the next."""
    ranges = of(members)
    assert spread(ranges) == members
    assert len(ranges) == len(members)
    assert bool(ranges) == bool(members)
    assert all(last + 1 < first for last, first in zip(ranges.lasts, ranges.firsts[1:], strict=False))


@given(numbers, numbers)
def test_union_and_difference(one: set[int], other: set[int]) -> None:
    """As of sets, and in the one form that each set has."""
    assert of(one) | of(other) == of(one | other)
    assert of(one) - of(other) == of(one - other)


@given(numbers, number, number)
def test_questions(members: set[int], low: int, high: int) -> None:
    """What lies in a stretch, and above a number."""
    ranges = of(members)
    inside = {each for each in members if low < each <= high}
    assert ranges.meets(low, high) == bool(inside)
    assert (low in ranges) == (low in members)
    assert ranges.above(low) == of({each for each in members if each > low})
    assert {n for a, b in ranges.within(low + 1, high) for n in range(a, b + 1)} == inside
