"""The times at which regular work is done: tasks that wake together cost one turn of the loop.

An idle process costs what its wake-ups cost, and a processor that sleeps pays several times as much for each.
"""

from __future__ import annotations

import math

import trio


def next_beat(seconds: float) -> float:
    """Return when Trio's clock will next be a multiple of `seconds`."""
    return (math.floor(trio.current_time() / seconds) + 1) * seconds


async def beat(seconds: float) -> None:
    """Sleep until the next multiple of `seconds`: at most so long, and on average, where it is repeated."""
    await trio.sleep_until(next_beat(seconds))
