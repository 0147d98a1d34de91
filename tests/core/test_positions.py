"""Positions: what is given out comes back, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import InvalidPosition
from broker.wire import positions
from broker.wire.positions import Position


@settings(deadline=None)
@given(incarnation=st.from_regex("[a-z0-9]{1,32}", fullmatch=True), sequence=st.integers(0, 2**64 - 1))
def test_round_trip(incarnation: str, sequence: int) -> None:
    """Every sequence that NATS can count to."""
    position = Position(incarnation, sequence)
    assert positions.parse(str(position)) == position


@settings(deadline=None)
@given(text=st.text(max_size=60) | st.text("a0-9 .\n", max_size=12))
def test_one_spelling(text: str) -> None:
    """A text is either refused or the one spelling of its position."""
    try:
        found = positions.parse(text)
    except InvalidPosition:
        return
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "a", "a-", "-1", "a--1", "a-01", "a-+1", "a-1 ", " a-1", "a-1\n", "a-1.0", "a-1e3", "A-1",
        "a-٣", "a_b-1", "a-b-1", "a" * 33 + "-1", "a-" + "1" * 21, "a-1" * 10000,
    ],
)  # fmt: skip
def test_no_position(text: str) -> None:
    """Forged ones are refused with a sentence of bounded length."""
    with pytest.raises(InvalidPosition) as refused:
        positions.parse(text)
    assert len(refused.value.message) < 200
