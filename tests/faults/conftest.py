"""The fault suite: which rows run, the world they run in, and the report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.faults.options import wanted
from tests.faults.support import world
from tests.faults.support.report import Report

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


class OpenWorld(Protocol):
    def __call__(self, **options: Any) -> AbstractAsyncContextManager[world.World]: ...


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    choice = config.getoption("--faults")

    def left_out_of_it(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("fault")
        test = getattr(item, "originalname", item.name)
        return mark is not None and not wanted(choice, mark.args[0], test)

    left_out = [item for item in items if left_out_of_it(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """What the test measures."""
    return Report(request.node)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of everything that is random in the test; shown when it fails."""
    number: int = request.config.getoption("--faults-seed")
    request.node.add_report_section("setup", "seed", f"--faults-seed {number}")
    return number


@pytest.fixture
def open_world(tmp_path: Path, seed: int) -> OpenWorld:
    """Opens the world of this test, under its seed."""
    return partial(world.open_world, tmp_path, seed)
