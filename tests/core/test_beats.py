"""Regular work is done at common times."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from broker.beats import beat, next_beat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def test_work_of_any_length(autojump_clock: MockClock) -> None:
    """However long the work in between takes, beats come at whole multiples, and none is longer than one."""
    autojump_clock.jump(3.25)
    for work, at in ((0.0, 4.0), (0.5, 6.0), (1.99, 8.0), (2.0, 12.0), (0.0, 14.0)):
        await trio.sleep(work)
        began = trio.current_time()
        await beat(2.0)
        assert trio.current_time() == at
        assert 0 < at - began <= 2.0


async def test_all_wake_together(autojump_clock: MockClock) -> None:
    """Tasks of other periods that began at any time share their wake-ups."""
    woken: dict[float, set[str]] = defaultdict(set)

    async def work(
        name: str, begin: float, pause: Callable[[float], Awaitable[None]], seconds: float
    ) -> None:
        await trio.sleep(begin)
        while True:
            await pause(seconds)
            woken[trio.current_time()].add(name)

    with trio.move_on_after(20.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "a", 0.3, beat, 1.0)
            nursery.start_soon(work, "b", 0.6, beat, 2.0)
            nursery.start_soon(work, "c", 0.9, beat, 5.0)
    assert len(woken) == 20
    assert woken[10.0] == {"a", "b", "c"}


@given(at=st.floats(0, 1e7), seconds=st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 5.0]))
def test_always_ahead(at: float, seconds: float) -> None:
    """The next beat is within the period, as far as floats tell."""

    async def look() -> None:
        now = trio.current_time()
        assert now <= next_beat(seconds) <= now + seconds * (1 + 1e-6)

    clock = MockClock()
    clock.jump(at)
    trio.run(look, clock=clock)
