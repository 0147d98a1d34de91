"""What is known of what was deleted, and who is told of a hole."""

from __future__ import annotations

import attrs
import pytest

from broker.bus.base import StreamState
from broker.eventlog import gone as module
from broker.eventlog.gone import Gone, duration
from broker.ranges import Ranges


@attrs.frozen
class Owner:
    tenant: str
    channel: str


def state(*deleted: int, first: int = 1, last: int = 100, **fields: int) -> StreamState:
    return StreamState(incarnation="inc", first=first, last=last, deleted=Ranges.of(deleted), **fields)


def filled(*owners: str, per_subject: int = 0) -> Gone:
    """Sequences from 1 on, seen arriving, each of "TENANT CHANNEL" or none."""
    gone = Gone(incarnation="inc", per_subject=per_subject)
    for sequence, each in enumerate(owners, 1):
        gone.saw((sequence, each, b"", None), Owner(*each.split()) if each else None, 0.0)
    return gone


def hears(gone: Gone, after: int, upto: int, tenant: str = "t", channel: str = "a") -> bool:
    return gone.between(tenant, after, upto, lambda each: each == channel)


def test_what_is_new() -> None:
    """Each deletion once, at the beginning of the stream and within."""
    gone = filled(*["t a"] * 9)
    assert gone.note(state(3, 5)) == Ranges.of([3, 5])
    assert gone.note(state(3, 5)) == Ranges()
    assert gone.note(state(5, 8, first=4)) == Ranges.of([1, 2, 8])
    assert [each for each in range(1, 10) if gone.has(each)] == [1, 2, 3, 5, 8]


def test_whose_it_was() -> None:
    """The tenant's channel and broadcasts; a dead letter was nobody's, what nobody saw is everybody's."""
    gone = filled("t a", "t b", "u a", "_all a", "", "t a")
    gone.note(state(2, 3, 5))
    assert not hears(gone, 0, 6)
    assert hears(gone, 0, 6, channel="b")
    assert hears(gone, 0, 6, tenant="u")
    assert not hears(gone, 2, 6, channel="b")
    assert not hears(gone, 0, 1, channel="b")
    gone.note(state(2, 3, 4, 5))
    assert hears(gone, 0, 6)
    assert hears(gone, 0, 6, tenant="w")
    gone.note(state(2, 3, 4, 5, 50))
    assert hears(gone, 6, 60, tenant="w", channel="x")
    assert not hears(gone, 50, 60)


def test_the_beginning_of_the_stream() -> None:
    """What is cut off there is a hole like another one."""
    gone = filled("t a", "t b", "t a")
    gone.note(state(first=3))
    assert hears(gone, 0, 3)
    assert not hears(gone, 1, 3)
    assert hears(gone, 1, 3, channel="b")


def test_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose the older events were is forgotten; then everybody hears."""
    monkeypatch.setattr(module, "SEEN", 10)
    gone = filled(*["t a"] * 25)
    gone.note(state(3, 20))
    assert hears(gone, 0, 5, tenant="w")
    assert not hears(gone, 16, 25, tenant="w")
    assert len(gone.sequences) <= 20


def test_a_time_to_live() -> None:
    """It is over at its time, whether the stream has said so yet or not, and is told of once."""
    gone = filled("t a")
    for sequence, text in enumerate(("10s", "never", "20", "1h", "x"), 2):
        gone.saw((sequence, "", b"", {"Nats-TTL": text}), Owner("t", "a"), 100.0)
    assert gone.expire(109.9) == Ranges()
    assert gone.expire(110.0) == Ranges.of([2])
    assert hears(gone, 1, 3)
    assert gone.note(state(2)) == Ranges()
    assert gone.note(state(2, 4)) == Ranges.of([4])
    assert gone.expire(130.0) == Ranges()
    assert gone.expired == Ranges()
    assert gone.expire(3700.0) == Ranges.of([5])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("7", 7),
        ("never", None),
        ("", None),
        ("5x", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """As ADR-43 has them: whole seconds, or as Go writes them."""
    assert duration(text) == seconds


def test_only_the_newest_are_kept() -> None:
    """What was replaced is no hole; where the newest was deleted, what it had replaced is gone as well."""
    gone = filled("t a", "t b", "t a", "t b", "t a", per_subject=2)
    assert gone.note(state(1, per_subject=2)) == Ranges()
    assert not hears(gone, 0, 5)
    assert gone.note(state(1, 3, 5, per_subject=2)) == Ranges.of([1, 3, 5])
    assert hears(gone, 0, 5)
    assert not hears(gone, 0, 5, channel="b")


def test_too_many_to_be_named() -> None:
    """Everything up to there may have a hole."""
    gone = filled(*["t a"] * 9)
    gone.note(state(unnamed=6, last=9))
    assert hears(gone, 5, 9)
    assert not hears(gone, 6, 9)
    assert not gone.has(5)


def test_deleted_on_the_way() -> None:
    """Of what arrives now, what the stream has said already to be gone."""
    gone = Gone(incarnation="inc")
    gone.note(state(3, 5))
    records = [(sequence, "", b"", None) for sequence in (2, 3, 4, 5)]
    assert gone.late(records) == Ranges.of([3, 5])
    assert gone.late(records[3:]) == Ranges.of([5])
    assert gone.late([(6, "", b"", None)]) == Ranges()
    assert gone.late([(0, "live", b"", None)]) == Ranges()
