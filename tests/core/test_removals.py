"""From the number of messages: whether keys may have been removed without a word."""

from __future__ import annotations

import random

import pytest

from broker.bus.base import Count
from broker.keyed import removals
from broker.keyed.removals import Removals

A, B, C = "state.t.a", "state.t.b", "state.t.c"


def count(last: int, messages: int, incarnation: str = "x") -> Count:
    return Count(incarnation=incarnation, last=last, messages=messages)


@pytest.mark.parametrize(
    ("stored", "messages", "suspected"),
    [
        ([], 3, False),
        ([], 2, True),
        ([C], 4, False),  # a new key
        ([C], 3, True),  # it may have replaced one: that is not known of the first message
        ([A, A], 3, True),
        ([A, A, A], 4, False),
        ([A, A, B, A], 3, True),
        ([A, A, B, A], 5, False),
        ([A, A, B, A], 4, True),
    ],
)
def test_less_than_there_can_be(stored: list[str], messages: int, suspected: bool) -> None:
    """After three keys, of which nothing is known: what was stored since, and how many are there."""
    found = Removals()
    found.begin(count(3, 3))
    for sequence, subject in enumerate(stored, 4):
        found.note(sequence, subject)
    assert found.suspects(count(3 + len(stored), messages)) is suspected


def test_what_comes_after_the_count_is_of_the_next() -> None:
    """The feed may be ahead of it."""
    found = Removals()
    found.begin(count(0, 0))
    for sequence in (1, 2, 3):
        found.note(sequence, A)
    assert not found.suspects(count(2, 1))
    assert not found.suspects(count(3, 1))
    assert found.suspects(count(3, 0))
    assert found.suspects(count(3, 1, "y"))


@pytest.mark.parametrize("seed", range(20))
def test_no_removal_is_overlooked(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is stored beside it; and where nothing is removed, known keys raise no suspicion."""
    rng = random.Random(seed)
    monkeypatch.setattr(removals, "SUBJECTS", rng.choice((2, 1000)))
    found, there, last = Removals(), set[str](), 0
    found.begin(count(0, 0))
    for _ in range(200):
        gone = rng.sample(sorted(there), min(len(there), rng.choice((0, 0, 1, 3))))
        for number in range(rng.randint(0, 5)):
            if number == 2:
                there -= set(gone)
            last, subject = last + 1, f"state.t.{rng.randint(0, 9)}"
            found.note(last, subject)
            there.add(subject)
        there -= set(gone)
        suspected = found.suspects(count(last, len(there)))
        assert suspected or not gone
        if suspected:
            assert gone or removals.SUBJECTS == 2 or len(found.seen) < 10
            found.begin(count(last, len(there)))
    found.begin(None)
    found.note(last + 1, A)
    assert not found.replaced
    assert not found.seen
