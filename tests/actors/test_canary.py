"""When an event can travel, and when the watchdog is fed: not by a timer, but by what has been found out."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from broker.actors.canary import LATE_SECONDS, Canary
from broker.errors import Unavailable
from broker.subjects import Names
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@attrs.define(eq=False, kw_only=True)
class Feed(ScriptedBus):
    """A bus whose canaries go to `arrived_at` at once; the stream takes no events for the reason `closed`."""

    fed: str | None = "inc0"
    closed: str | None = None
    asked: int = 0
    arrived_at: Callable[[str, bytes], object] = attrs.field(init=False)

    def put_live(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.arrived_at(subject.removeprefix("_broker."), body)

    async def probe(self) -> None:
        await super().probe()
        self.asked += 1
        if self.closed:
            raise Unavailable(self.closed)


@pytest.mark.parametrize(
    ("bus", "fed", "reason"),
    [
        ({}, True, None),
        ({"sings": False}, False, "it was stored, but has not come back"),
        ({"failures": 1.0}, True, "scripted"),
        ({"silent": LATE_SECONDS}, False, "the feed of events has been silent for 10 s"),
        ({"closed": "the stream EVENTS is full"}, True, "the stream EVENTS is full"),
    ],
    ids=["all is well", "canaries do not come back", "NATS is away", "the feed is silent", "takes no events"],
)
async def test_readiness_and_watchdog(
    bus: dict[str, object], fed: bool, reason: str | None, autojump_clock: trio.abc.Clock
) -> None:
    """What a restart may mend keeps the watchdog hungry; that NATS is away or full is not of that kind."""
    calls: list[float] = []
    feed = Feed(random=random.Random(1), **bus)  # type: ignore[arg-type]
    canary = Canary(feed, Names(), "me", lambda: calls.append(trio.current_time()))
    feed.arrived_at = canary.heard
    assert canary.trouble()
    with trio.move_on_after(60):
        await canary.run()
    assert bool(calls) == fed
    assert canary.trouble() == reason
    assert feed.records == [], "something of the broker's own lies in the stream of the events"
    if fed:
        gaps = [later - earlier for earlier, later in pairwise(calls)]
        assert max(gaps) < LATE_SECONDS


async def test_ready_again(autojump_clock: trio.abc.Clock) -> None:
    """Whatever was in the way, once it is gone the broker is ready within seconds."""
    feed = Feed(random=random.Random(1))
    canary = Canary(feed, Names(), "me", lambda: None)
    feed.arrived_at = canary.heard
    troubles: Sequence[tuple[str, object, object]] = [
        ("sings", False, True),
        ("failures", 1.0, 0.0),
        ("silent", LATE_SECONDS, 0.0),
        ("closed", "full", None),
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(canary.run)
        for name, broken, mended in troubles:
            setattr(feed, name, broken)
            await trio.sleep(2 * LATE_SECONDS)
            assert canary.trouble(), name
            setattr(feed, name, mended)
            await trio.sleep(5)
            assert canary.trouble() is None, name
        nursery.cancel_scope.cancel()


async def test_a_stream_in_trouble_is_asked_no_more_often(autojump_clock: trio.abc.Clock) -> None:
    """Every broker asks, and a server whose disk is full has enough to do."""
    feed = Feed(random=random.Random(1))
    canary = Canary(feed, Names(), "me", lambda: None)
    feed.arrived_at = canary.heard
    counts = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(canary.run)
        for closed in (None, "full"):
            feed.closed, feed.asked = closed, 0
            await trio.sleep(60)
            counts.append(feed.asked)
        nursery.cancel_scope.cancel()
    assert abs(counts[1] - counts[0]) <= 2
