"""Fixtures that rooms share: real parts, no fakes."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog
from xdist.scheduler.loadscope import LoadScopeScheduling

from tests.support.nats import NatsServer, run_nats
from tests.support.node import modules, node  # noqa: F401  pytest finds them here
from tests.support.ports import held_ports
from tests.support.rawnats import RawNats, connect
from tests.support.seeds import seeded  # noqa: F401  likewise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from xdist.remote import Producer

pytest_plugins = ["tests.faults.options", "tests.support.results"]

hypothesis.settings.register_profile("untimed", deadline=None)  # machines are busy with other things too
hypothesis.settings.load_profile("untimed")

LONGEST = ("browser", "faults", "bench")  # rooms of tests
PAGES = "tests/browser/test_browser.py::test_pages["


def plain_logs() -> None:
    """What the broker logs in tests. The tracebacks that structlog draws by default cost a second each."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])


plain_logs()
os.environ["PYTHONSAFEPATH"] = "1"  # what tests start runs the installed broker, wherever it is started


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait as long as they compute, so there are two processes for each processor."""
    return (os.cpu_count() or 1) * 2


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # untyped
    """Whoever is free takes the next test; one process has all pages, since a browser fills a processor."""

    def _split_scope(self, nodeid: str) -> str:
        return PAGES if nodeid.startswith(PAGES) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Return what `-n` uses, unless `--dist` names another."""
    return Scheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the long tests, which compute, over the others, which wait; none comes near the end."""
    long = [item for item in items if item.nodeid.split("/")[1] in LONGEST]
    short = [item for item in items if item.nodeid.split("/")[1] not in LONGEST]
    between = len(short) * 4 // 5 // len(long) if long else 0
    for place, item in enumerate(long):
        short.insert(place * (between + 1), item)
    items[:] = short


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A real nats-server of this test alone, without credentials."""
    directory = tmp_path / "nats"
    directory.mkdir()
    async with run_nats(directory) as server:
        yield server


@pytest.fixture
async def publisher(nats: NatsServer) -> AsyncIterator[RawNats]:
    """A NATS client of another make, connected to `nats`."""
    async with connect(nats.url) as client:
        yield client


@pytest.fixture
def held() -> Iterator[list[int]]:
    """A port at which nobody listens but whom the test lets."""
    with held_ports() as ports:
        yield ports


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """For tests in which crashes are meant: to write the tracebacks would take most of the time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()
    plain_logs()
