"""A whole run of one scenario: from the processes to the report."""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from broker.bench.contenders import run_nats
from broker.bench.harness import Bench, Plan
from broker.bench.live import Live
from broker.bench.results import Report

if TYPE_CHECKING:
    from rich.console import Console

    from broker.bench.catalogue import Scenario
    from broker.bench.contenders import BrokerProcess

__all__ = ["HANDSHAKES", "Address", "Plan", "bench"]

HANDSHAKES = ("connect", "idle")  # where any WebSocket server may stand beside
PACKAGES = ("nats-websocket-broker", "trio", "wsproto", "nats-py", "trio-websocket", "msgspec")


@attrs.frozen(kw_only=True)
class Address:
    """A broker that is not ours, and the NATS that it listens to."""

    broker: BrokerProcess
    nats: str


def bench(name: str, scenario: Scenario, plan: Plan, console: Console, at: Address | None = None) -> Report:
    """Runs a scenario. Raises `BenchError`, and ends all of its processes whatever happens."""
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as directory, ExitStack() as stack:
        nats = stack.enter_context(run_nats(Path(directory) / "nats"))
        made = Bench(
            plan=plan,
            nats=nats,
            directory=Path(directory),
            live=stack.enter_context(Live(console)),
            stack=stack,
            given=at.broker if at else None,
            given_nats=at.nats if at else "",
        )
        scenario.run(made)
    return Report(
        scenario=name,
        parameters=attrs.asdict(plan),
        machine=machine(),
        versions=versions(nats.version),
        began=began.isoformat(timespec="seconds"),
        results=made.results,
        targets=scenario.targets,
        warnings=made.warnings,
    )


def machine() -> dict[str, str]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": models[0] if models else platform.processor(),
        "memory": f"{pages * size / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(nats: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "nats-server": nats}
    return found | {name: metadata.version(name) for name in PACKAGES}
