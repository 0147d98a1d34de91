"""The judge of the fault suite finds what it is there to find: each test plants one fault."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.faults.support.client import Client
from tests.faults.support.entitled import matches
from tests.faults.support.follower import Follower, Noted, Received, Stay
from tests.faults.support.historian import Historian
from tests.faults.support.judge import Verdict, judge
from tests.faults.support.ledger import Entry, Ledger

EVENTS = 10


def client(kind: type[Follower] = Client, **fields: Any) -> Follower:
    made = kind(
        name="client",
        tenant="acme",
        user="u0",
        patterns=["orders.>"],
        denied=["orders.secret"],
        token=str,
        address=str,
        random=Random(1),
        baseline="a-2",
        position="a-10",
        **fields,
    )
    made.stays.append(Stay(1, 0.0))
    return made


def received(sequence: int, *, channel: str = "orders.1", **fields: Any) -> Received:
    values: dict[str, Any] = {
        "at": 0.0,
        "connection": 1,
        "channel": channel,
        "incarnation": "a",
        "sequence": sequence,
        "id": f"events.acme.{channel}#{sequence}",
        "catch_up": None,
    }
    return Received(**values | fields)


def published(ledger: Ledger, subject: str, sequence: int) -> tuple[str, str]:
    identity = f"{subject}#{sequence}"
    ledger.sent[identity] = subject
    ledger.stored[identity] = Entry(id=identity, subject=subject, sequence=sequence, sent=0, taken=0)
    return subject, identity


def verdict(follower: Follower, *, purged: int = 0, trims: bool = True, forgets: bool = False) -> Verdict:
    """What is said of a client that should have got 3 to 10, of a stream in which `purged` are gone."""
    ledger = Ledger()
    stream = {number: published(ledger, "events.acme.orders.1", number) for number in range(1, EVENTS + 1)}
    for subject in ("events.globex.orders.1", "events.acme.orders.secret", "events.acme.stock"):
        published(ledger, subject, 100)
    left = {number: each for number, each in stream.items() if number > purged}
    left |= {100 + n: (subject, f"{subject}#100") for n, subject in enumerate(others(ledger))}
    for number in range(3):
        identity = f"live.acme.orders.1#{number}"
        ledger.sent[identity] = "live.acme.orders.1"
        ledger.live[identity] = Entry(
            id=identity, subject="live.acme.orders.1", sequence=0, sent=number + 1, taken=number + 1.5
        )
    return judge(ledger, [follower], left, trims=trims, forgets=forgets, ended=100.0)


def others(ledger: Ledger) -> list[str]:
    return [entry.subject for entry in ledger.stored.values() if entry.sequence == 100]


def good() -> Follower:
    made = client()
    made.events += [received(number) for number in range(3, EVENTS + 1)]
    return made


def test_nothing_is_wrong() -> None:
    """Without a fault there is none, and the counts are right."""
    found = verdict(good())
    assert not found.problems
    assert (found.delivered, found.duplicated, found.missing, found.announced) == (8, 0, 0, 0)


@pytest.mark.parametrize("lost", [3, 7, 10])
def test_one_is_missing(lost: int) -> None:
    """At the beginning, in the middle, at the end; a gap is no excuse for what is still in the stream."""
    made = good()
    made.events = [event for event in made.events if event.sequence != lost]
    gap = {"reason": "trimmed", "from": "a-0", "to": "a-10"}
    made.notes.append(Noted(0.0, 1, "gap", gap))
    assert verdict(made).missing == 1
    assert "never got" in verdict(made).problems[0]


def test_one_comes_twice() -> None:
    """Over two connections, too."""
    made = good()
    made.events.append(received(10, connection=2))
    assert "twice" in verdict(made).problems[0]


@pytest.mark.parametrize(
    ("forgets", "first", "fine"), [(True, 2, True), (False, 2, False), (True, 10, False)]
)
def test_one_that_was_never_acknowledged_comes_again(*, forgets: bool, first: int, fine: bool) -> None:
    """Its service sent it again after NATS had lost the copy and its id: no fault of the broker."""
    made = good()
    made.events.insert(0, received(first, id="events.acme.orders.1#10"))
    made.events.sort(key=lambda event: event.sequence)
    assert (not verdict(made, forgets=forgets).problems) == fine


def test_two_change_places() -> None:
    """Order counts."""
    made = good()
    made.events[0], made.events[1] = made.events[1], made.events[0]
    assert "out of order" in verdict(made).problems[0]


@pytest.mark.parametrize(
    "event",
    [
        received(100, id="events.globex.orders.1#100"),
        received(100, channel="orders.secret"),
        received(100, channel="stock"),
        received(100, id="events.acme.orders.1#99"),
        received(4, channel="orders.2", id="events.acme.orders.1#4"),
    ],
    ids=["tenant", "denied", "channel", "invented", "mislabelled"],
)
def test_one_is_for_somebody_else(event: Received) -> None:
    """Another tenant's, a denied channel's, one outside its patterns, one that never was."""
    made = good()
    made.events.append(event)
    assert verdict(made).problems


@pytest.mark.parametrize(
    ("gap", "fine"),
    [
        (None, False),
        ({"reason": "trimmed", "from": "a-2", "to": "a-5"}, True),
        ({"reason": "trimmed", "from": "a-2", "to": "a-4"}, False),
        ({"reason": "trimmed", "from": "a-3", "to": "a-5"}, False),
        ({"reason": "reset", "to": "a-5"}, True),
        ({"reason": "lag", "from": "a-2", "to": "a-5"}, False),
    ],
)
def test_what_is_gone_must_be_announced(gap: dict[str, Any] | None, fine: bool) -> None:
    """3, 4 and 5 were purged unseen: only a gap that covers all of them will do."""
    made = good()
    made.events = made.events[3:]
    if gap:
        made.notes.append(Noted(0.0, 1, "gap", gap))
    found = verdict(made, purged=5)
    assert found.missing == 3
    assert bool(found.problems) != fine
    assert verdict(made, purged=5, trims=False).problems, "NATS lost it, and the test did not"


def test_live_events() -> None:
    """One that is missing between two others, or comes twice; after a word of loss they may be missing."""
    made = good()
    made.patterns = ["orders.>", "live.>"]
    ones = [received(0, channel="live.orders.1", id=f"live.acme.orders.1#{number}") for number in range(3)]
    made.events += ones
    assert not verdict(made).problems
    made.events.remove(ones[1])
    assert "is missing" in verdict(made).problems[0]
    made.notes.append(Noted(0.0, 1, "source", {"state": "interrupted"}))
    assert not verdict(made).problems
    made.events.append(ones[2])
    assert "twice" in verdict(made).problems[0]


@pytest.mark.parametrize("lost", [None, 1, 5, 9])
def test_a_catch_up(lost: int | None) -> None:
    """Marked events up to the live position, unmarked ones after it: together each once."""
    made = client(Historian, past="orders.>", asking=True)
    assert isinstance(made, Historian)
    made.events += [received(number) for number in range(3, EVENTS + 1)]
    made.marked += [received(number, catch_up=1) for number in range(1, 8)]
    made.joined = 5  # behind 7
    made.marked = [event for event in made.marked if event.sequence != lost]
    if lost == 9:
        made.joined = 7
    assert len(verdict(made).problems) == (lost is not None) + (lost == 9)


@pytest.mark.parametrize(
    ("pattern", "channel", "within"),
    [
        ("orders.>", "orders.1", True),
        ("orders.>", "orders", False),
        ("orders.*", "orders.1.2", False),
        ("orders.1", "orders.1", True),
        (">", "users.u0.a", False),
        ("*.u0.a", "users.u0.a", False),
        ("users.u0.>", "users.u0.a", True),
        (">", "live.a", False),
        ("live.>", "live.a", True),
        ("live.>", "live.users.u0.a", False),
        ("live.users.u0.>", "live.users.u0.a", True),
    ],
)
def test_who_may_see_what(pattern: str, channel: str, within: bool) -> None:
    """The protocol's patterns and walls."""
    assert matches(pattern, channel) == within
