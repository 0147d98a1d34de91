"""An event that can happen again."""

from __future__ import annotations

import trio
import trio.testing

from broker.signals import Signal


async def test_many_at_once_wake_once(autojump_clock: trio.testing.MockClock) -> None:
    """However often it was set before somebody waits, it wakes once; set again, it wakes again."""
    del autojump_clock
    signal, woken = Signal(), 0

    async def follow() -> None:
        nonlocal woken
        while True:
            await signal.wait()
            woken += 1

    signal.set()
    signal.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 1
        signal.set()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 2
        nursery.cancel_scope.cancel()


async def test_what_was_set_is_not_lost_to_a_cancellation() -> None:
    """Who is cancelled while it waits leaves it set; what is cleared wakes nobody."""
    signal = Signal()
    signal.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await signal.wait()
    assert signal.event.is_set()
    signal.clear()
    assert not signal.event.is_set()
