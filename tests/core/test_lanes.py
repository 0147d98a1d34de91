"""Lanes and rows of keyed streams: what is given when, in which order, and up to where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.keyed.lane import Lane, rounded
from broker.keyed.rows import SPARE_DELETIONS, Row, Rows


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(1, 0.1), (100, 0.1), (101, 1.0), (1000, 1.0), (1001, 5.0), (5000, 5.0)]
)
def test_intervals_are_rounded_up(milliseconds: int, seconds: float) -> None:
    assert rounded(milliseconds) == seconds


def test_the_first_change_at_once_and_further_ones_together() -> None:
    """Each key for itself; what is held back keeps the position below it."""
    rows, lane = Rows(), Lane[Any](1.0)

    def put(key: str, revision: int, now: float) -> None:
        row = Row(key, revision, b"{}", None)
        lane.note(rows.put(row), row, now)

    def taken(now: float, head: int) -> list[tuple[str, int, int, int, int]]:
        return [
            (each.new.key, each.old.revision if each.old else 0, each.new.revision, each.first, each.upto)
            for each in lane.take(now, head)
        ]

    assert lane.due(0.0) is None
    put("a", 1, 0.0)
    assert lane.due(0.0) == 0.0
    assert taken(0.0, 1) == [("a", 0, 1, 1, 1)]
    put("a", 2, 0.1)
    put("a", 3, 0.2)
    assert lane.due(0.2) == 1.0
    assert taken(0.2, 3) == []
    put("b", 4, 0.3)
    assert taken(0.3, 5) == [("b", 0, 4, 4, 1)]  # not above the first change of `a` that is held back
    put("b", 6, 0.9)
    assert taken(1.0, 6) == [("a", 1, 3, 2, 5)]
    assert lane.due(1.0) == 1.3
    assert taken(1.3, 9) == [("b", 4, 6, 6, 9)]
    assert lane.due(1.3) is None
    put("a", 10, 5.0)
    put("b", 11, 5.0)
    put("a", 12, 5.0)
    assert taken(5.0, 12) == [("a", 3, 12, 10, 10), ("b", 6, 11, 11, 12)]
    assert not lane.changed
    assert lane.recent.keys() == {"a", "b"}


@given(
    puts=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=60),
    after=st.integers(0, 70),
)
def test_rows_are_those_of_a_naive_twin(puts: list[tuple[str, bool]], after: int) -> None:
    """The newest of each key in the order of revisions, with their number and size."""
    rows, twin = Rows(), dict[str, Row]()
    for revision, (key, deleted) in enumerate(puts, 1):
        row = Row(key, revision, b"" if deleted else b"x" * revision, None)
        assert rows.put(row) is twin.pop(key, None)
        twin[key] = row
    assert list(rows.after(after)) == [each for each in twin.values() if each.revision > after]
    live = [each for each in twin.values() if not each.deleted]
    assert (rows.count, rows.size) == (len(live), sum(len(each.body) for each in live))


def test_rows_do_not_grow_for_ever() -> None:
    """Neither with changes of the same keys, nor with deletions, of which the oldest are forgotten."""
    rows = Rows()
    for revision in range(1, 20_000):
        rows.put(Row(f"k{revision % 3}", revision, b"{}", None))
    assert len(rows.keys) < 2 * SPARE_DELETIONS
    assert rows.floor == 0
    for revision in range(20_000, 40_000):
        rows.put(Row(f"k{revision}", revision, b"", None))
    assert len(rows.by_key) < 4 * SPARE_DELETIONS
    assert rows.count == 3
    assert 20_000 <= rows.floor < 40_000
    assert min(each.revision for each in rows.after(0) if each.deleted) > rows.floor
