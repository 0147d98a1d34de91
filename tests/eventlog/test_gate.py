"""The gate of the reads of history: so many at a time, tenants in turn, and a bound that can change."""

from __future__ import annotations

import random

import trio

from broker.eventlog.gate import FairGate
from tests.support.seeds import simulated


@simulated(12)
async def test_never_more_than_it_lets_through(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """Also while the bound changes and waiters give up; in the end everybody had a turn."""
    rng = random.Random(seed)
    bound = rng.randint(1, 5)
    gate = FairGate(bound)
    inside, turns = 0, 0

    async def visitor(tenant: str) -> None:
        nonlocal inside, turns
        await trio.sleep(rng.uniform(0, 5))
        with trio.move_on_after(rng.choice((0.5, 100))):
            async with gate.turn(tenant):
                inside += 1
                assert inside <= most
                try:
                    await trio.sleep(rng.uniform(0, 0.5))
                finally:
                    inside -= 1
                turns += 1

    most = bound
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(visitor, f"t{number % 4}")
        for _ in range(5):
            await trio.sleep(rng.uniform(0, 1))
            other = rng.randint(1, 5)
            gate.widen(other - bound)
            bound, most = other, max(inside, other)  # those that are through finish
    assert (inside, gate.free) == (0, bound)
    assert not gate.waiting
    assert turns > 0


async def test_tenants_take_turns(autojump_clock: trio.abc.Clock) -> None:
    """One that waits with many is served no more often than one that waits with one."""
    gate = FairGate(1)
    order: list[str] = []

    async def visitor(tenant: str) -> None:
        async with gate.turn(tenant):
            order.append(tenant)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for tenant in ("a", "a", "a", "a", "b", "c"):
            nursery.start_soon(visitor, tenant)
            await trio.sleep(0.01)
    assert order == ["a", "a", "b", "c", "a", "a"]
