"""How many seeds simulations run: some at each run of the tests, more where `SIMULATION_SEEDS` says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

Test = TypeVar("Test", bound="Callable[..., object]")


def simulated(usual: int) -> Callable[[Test], Test]:
    """Runs a simulation with each `seed`. A failing test names its own, which replays it exactly."""
    seeds = range(int(os.environ.get("SIMULATION_SEEDS", usual)))

    def mark(test: Test) -> Test:
        each: Test = pytest.mark.parametrize("seed", seeds)(test)
        marked: Test = pytest.mark.simulation(each)
        return marked

    return mark
