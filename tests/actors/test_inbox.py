"""How much may wait for a tenant: so many bytes, however many events they are."""

from __future__ import annotations

import pytest

from broker.actors.inbox import EVENT_BYTES, INBOX_BYTES, Inbox


def filled(count: int, size: int) -> Inbox:
    """An inbox into which that many events of a size were put."""
    inbox, body = Inbox(), bytes(size)
    for number in range(1, count + 1):
        inbox.put("a", (number, "events.acme.a", body, None))
    return inbox


def test_a_burst_of_small_events_is_kept_whole() -> None:
    inbox = filled(30_000, 100)
    taken = 0
    while batch := inbox.take():
        taken += len(batch)
    assert (taken, inbox.lost, inbox.size) == (30_000, False, 0)


@pytest.mark.parametrize("size", [0, 1000, 1 << 20])
def test_what_waits_is_bounded_by_its_bytes(size: int) -> None:
    """Beyond that everything goes, and nothing more is taken until the tenant begins again."""
    most = INBOX_BYTES // (size + EVENT_BYTES)
    assert not filled(most, size).lost
    inbox = filled(most + 1, size)
    assert (inbox.lost, len(inbox.records)) == (True, 0)
    inbox.begin()
    inbox.put("a", (1, "events.acme.a", b"", None))
    assert len(inbox.take()) == 1
