"""Simulations: stories that a seed tells, the same one each time, and how many of them are run.

`SIMULATION_SEEDS` says how many seeds; by default a few at each run of the tests. A failing test names its
seed, which replays it exactly. A set whose order matters is one that `PYTHONHASHSEED` decides upon; the
broker has none.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
from trio.testing import MockClock

from broker import backoff
from broker.actors import supervisor, tenant
from broker.turns import TURN_SECONDS, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

Test = TypeVar("Test", bound="Callable[..., object]")

BEGINNING = 1_800_000_000  # of each story, in Unix seconds


def simulated(usual: int) -> Callable[[Test], Test]:
    """Runs a simulation with each `seed`, which decides what chance, real time and other work would."""
    seeds = range(int(os.environ.get("SIMULATION_SEEDS", usual)))

    def mark(test: Test) -> Test:
        each: Test = pytest.mark.parametrize("seed", seeds)(test)
        seeded: Test = pytest.mark.usefixtures("seeded")(each)
        marked: Test = pytest.mark.simulation(seeded)
        return marked

    return mark


@pytest.fixture
def seeded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which tasks run, jitter, clocks, and where long work is interrupted, go by the seed."""
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr("trio._core._run._r", random.Random(f"{seed} tasks"))
    random.seed(f"{seed} jitter")
    monkeypatch.setattr(backoff, "random", random.Random(f"{seed} pauses"))
    for name, beginning in (("time", BEGINNING), ("monotonic", 0.0)):
        monkeypatch.setattr(time, name, told(getattr(time, name), beginning))
    interrupt(random.Random(f"{seed} turns"), monkeypatch)


def told(real: Callable[[], float], beginning: float) -> Callable[[], float]:
    """A clock that stands with the fake one, in a task that has it."""

    def now() -> float:
        try:
            clock = trio.lowlevel.current_clock()
        except RuntimeError:  # outside of Trio
            return real()
        return beginning + clock.current_time() if isinstance(clock, MockClock) else real()

    return now


def shorten_memory(rng: random.Random, late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the feed remember less, so that more is read from the stream, unless that may be late."""
    if not late:
        monkeypatch.setattr(supervisor, "KEPT_SECONDS", rng.choice((10.0, 1.0, 0.0)))


def interrupt(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets others run wherever long work may pass on its turn: never, seldom, often, or each time.

    A real clock does that where it happens to have got to; under a fake one no turn is ever long.
    """
    often = rng.choice((0.0, 0.02, 0.3, 1.0))

    async def pass_on(_: Turn) -> None:
        if rng.random() < often:
            await trio.sleep(rng.choice((0.0, 0.0, TURN_SECONDS)))

    monkeypatch.setattr(Turn, "pass_on", pass_on)
    monkeypatch.setattr(tenant, "SENDS_BETWEEN_LOOKS", 1)
