"""Each scenario as a user runs it, with small numbers: it ends, and what it says is consistent."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from broker.bench.catalogue import SCENARIOS
from tests.support import command

if TYPE_CHECKING:
    from pathlib import Path

FEW = {
    "fanout": ["--clients", "20", "--rate", "50"],
    "unicast": ["--clients", "20"],
    "mixed": ["--clients", "30", "--tenants", "3", "--rate", "200"],
    "connect": ["--clients", "40"],
    "idle": ["--clients", "100"],
    "requests": ["--clients", "20", "--rate", "50"],
    "resume": ["--clients", "30"],
    "jitter": ["--clients", "20", "--rate", "50"],
    "history": ["--clients", "3", "--events", "3000"],
    "pages": ["--clients", "4", "--rate", "50", "--events", "12000"],
    "documents": ["--clients", "20", "--rate", "50"],
    "slow": ["--clients", "20", "--rate", "50"],
}
TROUBLE = ("out of order", "gaps", "lost connections")


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
async def test_scenario(scenario: str, tmp_path: Path) -> None:
    """It measures everybody it names, and nothing is lost on the way."""
    report = await run(tmp_path, scenario, *FEW[scenario], "--seconds", "1", "--rounds", "1")
    assert report["scenario"] == scenario
    assert not [each for each in report["warnings"] if any(word in each for word in TROUBLE)]
    assert {result["subject"] for result in report["results"]} >= {"broker", *SCENARIOS[scenario].beside}
    for result in report["results"]:
        assert result["figures"]
        assert all(value >= 0 for value in result["figures"].values())
    if scenario == "jitter":
        assert report["results"][0]["figures"]["delivered_share"] == 100
    if scenario == "documents":
        figures = {each["subject"]: each["figures"] for each in report["results"]}
        assert figures["broker"]["documents"] == figures["changed meanwhile"]["documents"]
    page = (tmp_path / "report.html").read_text()
    assert f"broker bench {scenario}" in page


async def test_two_brokers_on_one_port(tmp_path: Path) -> None:
    """Clients of both get everything; their CPU and memory are one figure."""
    few = ["--clients", "20", "--rate", "50", "--seconds", "1", "--rounds", "1", "--against", "none"]
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- bench fanout -->\n<!-- end of bench fanout -->\n")
    report = await run(tmp_path, "fanout", "--brokers", "2", *few, "--page", str(page))
    assert "`broker bench fanout` (clients 20, " in page.read_text()
    assert "| p99, ms " in page.read_text()
    assert not [each for each in report["warnings"] if any(word in each for word in TROUBLE)]
    assert {result["subject"] for result in report["results"]} == {"broker"}


async def run(directory: Path, *arguments: str) -> Any:
    files = ["--json", str(directory / "report.json"), "--html", str(directory / "report.html")]
    done = await command.broker("bench", *arguments, *files)
    assert done.code == 0, done.err
    return json.loads((directory / "report.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fanuot"], "fanuot"),
        (["fanout", "--against", "nobody"], "floor, nats-ws"),
        (["fanout", "--against", "ws://127.0.0.1:1/"], "floor, nats-ws"),
        (["fanout", "--clients", "0"], "--clients"),
        (["fanout", "--url", "http://x"], "ws://"),
        (["fanout", "--page", os.devnull], "<!-- bench fanout -->"),
    ],
)
async def test_what_cannot_be_measured(arguments: list[str], said: str, tmp_path: Path) -> None:
    """A wrong name is told, with what there is instead, and before anything is measured."""
    done = await command.broker("bench", *arguments, "--data-dir", tmp_path)
    assert done.code == 2
    assert said in done.err
