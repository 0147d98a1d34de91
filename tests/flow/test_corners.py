"""Corners of a flow, each as small as it goes."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from broker import config
from broker.eventlog.history import Segment
from broker.flow.flow import Start
from broker.flow.overflow import overflow, overflows
from broker.ranges import Ranges
from tests.support.flows import ENDLESS, Bench, Link


def tick_while_slow(
    bench: Bench, link: Link, *channels: str, limit: int = 1000, read_first: bool = False
) -> None:
    """A tick as the tenant sends it to one that is behind; its own task may have read it by then."""
    tick = bench.log.append(bench.records(*channels))
    slow = False
    for data, _, flows in bench.log.shares(tick):
        if read_first:
            link.write()
        if link.flow in flows and link.flow.mask:
            link.flow.mask = 0
            slow = overflows(link.flow, len(data), limit) or slow
    bench.log.finish()
    if slow:
        overflow(link.flow)


def gaps(link: Link) -> list[dict[str, Any]]:
    return [each["payload"] for each in link.messages() if each["type"] == "gap"]


def test_nothing_dropped_is_no_gap() -> None:
    """What overflows is another subscription's: nothing of what may be dropped waits."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, "a", policy="drop")
    bench.join(link, "b")
    bench.publish("b")
    for _ in range(30):
        tick_while_slow(bench, link, "b")
    link.room = ENDLESS
    link.write()
    assert gaps(link) == []


def test_below_the_ring_gaps_do_not_pile_up() -> None:
    """A client that takes nothing costs no frame per tick."""
    bench = Bench(bounds=config.Ring(events=2))
    link = bench.attach(room=0)
    bench.join(link, "a", policy="drop")
    bench.join(link, "b")
    bench.publish("b")
    for _ in range(3):
        tick_while_slow(bench, link, "a", "b", limit=10_000)
    before = link.flow.unsent
    for _ in range(1000):
        tick_while_slow(bench, link, "a", "b", limit=100_000)
    assert link.flow.unsent < before + 1000


def test_one_piece_that_is_more_than_may_wait() -> None:
    """A link that keeps what it was handed as one piece (TLS) gets no gap per tick either."""
    bench = Bench()
    link = bench.attach(whole=True, room=0)
    bench.join(link, "a", policy="drop")
    bench.publish(*["a"] * 20)
    for _ in range(100):
        tick_while_slow(bench, link, "a", limit=1000)
    assert link.flow.unsent < 6000


def test_what_was_read_already_does_not_wait() -> None:
    """Its task has read the running tick before the tenant came to it: that does not wait any more."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, "a", policy="close")
    bench.publish("a")
    frame = link.flow.unsent
    link.room = 12 * frame + 20
    tick_while_slow(bench, link, *["a"] * 12, limit=1000, read_first=True)
    assert 0 < link.flow.unsent < frame + 10
    tick_while_slow(bench, link, *["a"] * 4, limit=1000)
    assert link.calls["too_slow"] == 0, "but a third of that waits"


def test_joined_after_others_were_warned() -> None:
    """Those that were there know that something is gone; who joins at P does not."""
    bench = Bench()
    bench.publish("b", "a", "a")
    bench.feed.gone = Ranges.of([2])
    bench.log.drop(bench.feed.gone)
    link = bench.attach(room=10)
    bench.join(link, "*", start=Start(place=0))
    link.sending.read_on(bench.log)
    bench.join(link, "a")
    link.room = ENDLESS
    link.write()
    assert any("a" in each["channel"] for each in gaps(link)), gaps(link)


class OnePage:
    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def find(self, *_: object) -> Segment:
        return self.segment


def test_a_page_of_the_stream_is_not_kept_whole() -> None:
    """A link that keeps what it was handed in one piece holds about a page, not all that was read."""
    bench = Bench(bounds=config.Ring(events=2))
    records = bench.records(*["a"] * 200, size=5000)
    page = bench.log.encode(records, base=0)
    bench.publish("b", "b")
    bench.publish("b", "b")
    segment = Segment(after=0, upto=1000, trimmed=0, tick=page, size=page.size, read_at=0.0)
    bench.log.history = OnePage(segment)  # type: ignore[assignment]
    link = bench.attach(whole=True, room=0)
    bench.join(link, "a", start=Start(place=0))
    link.write()
    assert link.flow.unsent < 150_000, link.flow.unsent
    link.room = ENDLESS
    link.write()
    assert link.events() == list(range(1, 201))


async def test_a_catch_up_that_waits_for_the_stream_holds_nothing_up(autojump_clock: trio.abc.Clock) -> None:
    """While NATS does not answer, what the link takes again is written, and what it takes is read."""
    bench = Bench(bounds=config.Ring(events=2))
    bench.publish("a", "a")
    bench.publish("b", "b")
    bench.publish("b", "b")
    link = bench.attach()
    bench.join(link, "b")
    bench.join(link, "a", start=Start(place=0))

    class NoAnswer:
        def find(self, *_: object) -> None: ...

        async def fetch(self, *_: object) -> None:
            await trio.sleep_forever()

    bench.log.history = NoAnswer()  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.sending.run)
        for number in (7, 8):
            await trio.testing.wait_all_tasks_blocked()
            link.room = 10
            bench.publish("b")
            bench.join(link, f"other.{number}")
            link.room = ENDLESS
            await trio.testing.wait_all_tasks_blocked()
            assert link.events()[-1] == number
            assert link.flow.main is None
        nursery.cancel_scope.cancel()


def test_a_resume_is_not_told_again_what_its_answer_said() -> None:
    """What was deleted up to its start's end was told with `subscribed`; of what goes later it hears."""
    bench = Bench()
    bench.publish("a", "a", "a", "a")
    bench.feed.gone = Ranges.of([2])
    bench.log.drop(bench.feed.gone)
    link = bench.attach(room=10)
    bench.join(link, "a", start=Start(place=0, warned=4))
    bench.feed.gone = Ranges.of([2])
    link.room = ENDLESS
    link.write()
    assert link.events() == [1, 3, 4]
    assert not gaps(link)
