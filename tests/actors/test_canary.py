"""When the watchdog is fed: not by a timer, but by what the canary has found out."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from broker.actors.canary import LATE_SECONDS, Canary
from broker.subjects import Names
from tests.support.scripted import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.define(eq=False, kw_only=True)
class Feed(ScriptedBus):
    """A stream whose messages come back at once while `works`."""

    works: bool = True
    arrived_at: Callable[[str, bytes], object] = attrs.field(init=False)

    def put(self, subject: str, body: bytes, headers: object = None) -> int:
        sequence = super().put(subject, body)
        if self.works:
            self.arrived_at(subject.split(".", 2)[2], body)
        return sequence


@pytest.mark.parametrize(
    ("works", "failures", "fed"),
    [(True, 0.0, True), (False, 0.0, False), (True, 1.0, True)],
    ids=["comes back", "does not come back", "NATS is away"],
)
async def test_watchdog(works: bool, failures: float, fed: bool, autojump_clock: trio.abc.Clock) -> None:
    """Stored but never delivered is what a restart may mend; that NATS is away is not."""
    calls: list[float] = []
    bus = Feed(random=random.Random(1), failures=failures, works=works)
    canary = Canary(bus, Names(), "me", 0.0, lambda: calls.append(trio.current_time()))
    bus.arrived_at = canary.arrived
    with trio.move_on_after(60):
        await canary.run()
    assert bool(calls) == fed
    assert (canary.silence() is None) == (works and not failures)
    if fed:
        gaps = [later - earlier for earlier, later in pairwise(calls)]
        assert max(gaps) < LATE_SECONDS
