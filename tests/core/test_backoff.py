"""How long to wait before the next attempt."""

from __future__ import annotations

import pytest

from broker.backoff import Backoff

WAITS = 200


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_wait_grows_to_its_bound(jitter: float) -> None:
    """The bound doubles from the first to the longest; chance takes off no more than its part of it."""
    backoff = Backoff(first=0.5, longest=20.0, jitter=jitter)
    for failures, bound in ((0, 0.5), (1, 1.0), (5, 16.0), (6, 20.0), (5000, 20.0)):
        waits = [backoff.delay(failures) for _ in range(WAITS)]
        assert bound * (1 - jitter) <= min(waits) <= max(waits) <= bound
        assert max(waits) >= bound * (1 - jitter / 2)
        assert len(set(waits)) > 1 or jitter == 0


def test_clients_are_spread() -> None:
    """What an application gets when it says nothing: full jitter, from half a second to 20 s."""
    assert Backoff() == Backoff(first=0.5, longest=20.0, jitter=1.0)
